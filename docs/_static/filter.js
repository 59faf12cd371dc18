// The table of all techniques: narrowed by text, stage, symptom and cost; the choice stands in the address.
(() => {
  const form = document.querySelector(".filter");
  if (!form) return;
  const rows = JSON.parse(document.getElementById("catalogue").textContent);
  const body = document.querySelector("table.techniques tbody");
  const fields = ["text", "stage", "symptom", "flops", "parts"].map((name) => form.querySelector(`[name=${name}]`));
  const [text, stage, symptom, flops, parts] = fields;
  const options = (select, values) => values.forEach(([value, label]) => select.add(new Option(label ?? value, value)));
  options(stage, [...new Set(rows.map((row) => row.stage))].map((value) => [value]));
  options(symptom, JSON.parse(document.getElementById("symptoms").textContent).map((value) => [value]));
  options(flops, [1.1, 1.5, 2.2, 5].map((value) => [value, `FLOPs at most ${value}x`]));
  const element = (tag, content, attributes = {}) => {
    const made = Object.assign(document.createElement(tag), attributes);
    made.append(...content);
    return made;
  };
  for (const row of rows) {
    const name = element("a", [`${row.stage}.${row.name}`], { href: row.page });
    const symptoms = element("p", [row.symptoms.join(", ")], { className: "symptoms" });
    const cost = row.flops === null ? [] : [element("p", [`${row.flops}x`]), element("p", [row.of], { className: "symptoms" })];
    row.element = element("tr", [
      element("td", [name]), element("td", [element("p", [row.summary]), symptoms]), element("td", cost),
    ]);
    row.searched = [row.stage, row.name, row.summary, row.text, ...row.symptoms].join(" ").toLowerCase();
    body.append(row.element);
  }
  const show = () => {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0, hidden = 0;
    for (const row of rows) {
      const wanted = words.every((word) => row.searched.includes(word))
        && (!stage.value || row.stage === stage.value)
        && (!symptom.value || row.symptoms.includes(symptom.value))
        && (!flops.value || (row.flops !== null && row.flops <= Number(flops.value)));
      const visible = wanted && (parts.checked || !row.part);
      row.element.hidden = !visible;
      shown += visible;
      hidden += wanted && !visible;
    }
    form.querySelector("output").textContent = `${shown} techniques${hidden ? `, and ${hidden} parts of others` : ""}`;
    const chosen = fields.flatMap((f) => (f.type === "checkbox" ? f.checked : f.value) ? [[f.name, f.type === "checkbox" ? "1" : f.value]] : []);
    history.replaceState(null, "", chosen.length ? `?${new URLSearchParams(chosen)}` : location.pathname);
  };
  const asked = new URLSearchParams(location.search);
  for (const field of fields) {
    if (!asked.has(field.name)) continue;
    if (field.type === "checkbox") field.checked = true;
    else field.value = asked.get(field.name);
  }
  form.addEventListener("input", show);
  show();
})();
