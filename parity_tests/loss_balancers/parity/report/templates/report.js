"use strict";
// The filter. Without this script the page is whole, and shows everything.
const all = (selector) => [...document.querySelectorAll(selector)];
const inputs = all("#filter input");
const rows = all("#matrix tr[data-lane]");
const columns = all("#matrix thead [data-balancer]").map((head) => head.dataset.balancer);

const ticked = (name) => new Set(inputs.filter((input) => input.name === name && input.checked).map((input) => input.value));

function apply() {
  const frameworks = ticked("framework");
  const devices = ticked("device");
  const only = ticked("only").size > 0;
  const matching = new Set(
    rows.filter((row) => frameworks.has(row.dataset.framework) && devices.has(row.dataset.device)).map((row) => row.dataset.lane),
  );
  const different = all("#matrix td[data-differs]").filter((cell) => matching.has(cell.dataset.lane));
  const lanes = only ? new Set(different.map((cell) => cell.dataset.lane)) : matching;
  const balancers = new Set(only ? different.map((cell) => cell.dataset.balancer) : lanes.size > 0 ? columns : []);
  for (const element of all("main [data-lane], main [data-balancer]")) {
    const { lane, balancer } = element.dataset;
    // A lane that is right is needed to see with whom another disagrees.
    const among = element.closest("#disagreements, #absent") ? matching : lanes;
    element.hidden =
      (lane !== undefined && !among.has(lane)) ||
      (balancer !== undefined && !balancers.has(balancer)) ||
      (only && element.matches("#formats tbody tr:not([data-differs])"));
  }
  for (const group of all("#matrix tbody")) group.hidden = !group.querySelector("tr[data-lane]:not([hidden])");
  for (const value of all("#disagreements .value")) value.hidden = !value.querySelector("[data-lane]:not([hidden])");
  for (const card of all("#disagreements article")) card.hidden = !card.querySelector(".odd:not([hidden])");
  for (const card of all("#absent article")) card.hidden = !card.querySelector("li:not([hidden])");
  for (const section of all("#differences, #disagreements, #absent")) {
    section.querySelector(".none").hidden = section.querySelector("article:not([hidden])") !== null;
  }
  tell(lanes, balancers);
  fit();
}

function tell(lanes, balancers) {
  const cells = all("#matrix td:not([hidden])").filter((cell) => lanes.has(cell.dataset.lane));
  const sum = (key) => cells.reduce((total, cell) => total + Number(cell.dataset[key]), 0).toLocaleString("en");
  document.getElementById("shown").textContent =
    `${lanes.size} of ${rows.length} lanes and ${balancers.size} of ${columns.length} balancers shown: ` +
    (lanes.size === 0 ? "nothing matches the filter." : `${sum("identical")} of ${sum("vectors")} results bit-identical.`);
}

// A box whose table fits need not scroll, and is no stop for the keyboard.
function fit() {
  for (const box of all(".scroll")) {
    const fits = box.scrollWidth <= box.clientWidth;
    box.classList.toggle("fits", fits);
    box.tabIndex = fits ? -1 : 0;
  }
}

for (const input of inputs) input.addEventListener("change", apply);
document.getElementById("reset").addEventListener("click", () => {
  for (const input of inputs) input.checked = input.defaultChecked;
  apply();
});
window.addEventListener("resize", fit);
document.getElementById("filter").hidden = false;
apply(); // a browser may have kept the ticks of an earlier visit
