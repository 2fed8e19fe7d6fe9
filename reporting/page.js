"use strict";
// The table of errors: filters over the rows in #data. Whatever comes from the data is set as text, never as HTML.
const tasks = JSON.parse(document.getElementById("data").textContent).errors;
const AT_ONCE = 50;
const find = (id) => document.getElementById(id);
let shown = AT_ONCE;

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

const listed = (value) => (Array.isArray(value) ? value : [value]);
const words = (value) => (Array.isArray(value) ? value.join(", ") || "–" : String(value));
const current = () => tasks[Number(find("task").value)];

function offer(select, values) {
  const distinct = [...new Set(values)].filter((value) => value !== null).map(String).sort();
  select.replaceChildren(element("option", "any", { value: "" }), ...distinct.map((value) => new Option(value, value)));
}

function chooseTask() {
  const task = current();
  const isLabelled = task.kind === "labels";
  for (const label of document.querySelectorAll(".labels")) label.hidden = !isLabelled;
  offer(find("split"), task.rows.map((row) => row.split));
  offer(find("label"), isLabelled ? task.rows.flatMap((row) => listed(row.label)) : []);
  offer(find("prediction"), isLabelled ? task.rows.flatMap((row) => listed(row.prediction)) : []);
  find("columns").replaceChildren(...task.slices.map((name, place) => {
    const label = element("label", name);
    const select = element("select", undefined, { "data-place": place });
    offer(select, task.rows.map((row) => row.slices[place]));
    label.append(select);
    return label;
  }));
  find("meaning").textContent = `“${task.heading}” says ${task.meaning}.`;
  const heads = ["text", "labelled", "predicted", task.heading, "split", "words", ...task.slices];
  const line = element("tr");
  line.append(...heads.map((name, place) => element("th", name, [3, 5].includes(place) ? { class: "number" } : {})));
  document.querySelector("#rows thead").replaceChildren(line);
  shown = AT_ONCE;
  update();
}

function matches(row) {
  const [split, label, prediction] = ["split", "label", "prediction"].map((id) => find(id).value);
  const text = row.text.join("\n").toLowerCase();
  return find("search").value.toLowerCase().split(/\s+/).every((word) => text.includes(word))
    && (!split || row.split === split)
    && (!label || listed(row.label).includes(label))
    && (!prediction || listed(row.prediction).includes(prediction))
    && row.words >= Number(find("shortest").value)
    && row.words <= (find("longest").value === "" ? Infinity : Number(find("longest").value))
    && [...document.querySelectorAll("#columns select")].every(
      (select) => !select.value || row.slices[Number(select.dataset.place)] === select.value);
}

function lineOf(row, task) {
  const line = element("tr");
  const text = element("td");
  text.append(...row.text.map((sentence) => element("p", sentence, { class: "text" })));
  const cell = (name, value, isNumber) =>
    element("td", value, { "data-name": name, ...(isNumber ? { class: "number" } : {}) });
  line.append(text, cell("labelled", words(row.label)), cell("predicted", words(row.prediction)),
    cell(task.heading, String(row.distance), true), cell("split", row.split), cell("words", String(row.words), true),
    ...task.slices.map((name, place) => cell(name, row.slices[place] ?? "–")));
  return line;
}

function update() {
  const task = current();
  const found = task.rows.filter(matches);
  document.querySelector("#rows tbody").replaceChildren(...found.slice(0, shown).map((row) => lineOf(row, task)));
  const what = task.kind === "regression" || task.kind === "similarity" ? "rows" : "errors";
  const [rows, wrong, count] = [task.rows.length, task.wrong, task.count].map((size) => size.toLocaleString("en"));
  const worst = task.rows.length < task.wrong ? `the worst of ${wrong}; ` : "";
  find("count").textContent = `${found.length.toLocaleString("en")} of ${rows} ${what} (${worst}${count} rows were measured)`;
  find("more").hidden = found.length <= shown;
}

find("task").replaceChildren(...tasks.map((task, place) => new Option(task.task, place)));
find("task").addEventListener("change", chooseTask);
find("filters").addEventListener("input", (event) => {
  if (event.target.id === "task") return;
  shown = AT_ONCE;
  update();
});
find("filters").addEventListener("submit", (event) => event.preventDefault());
find("filters").addEventListener("reset", () => {
  const task = find("task").value;
  setTimeout(() => { find("task").value = task; chooseTask(); });
});
find("more").addEventListener("click", () => { shown += AT_ONCE; update(); });
chooseTask();
