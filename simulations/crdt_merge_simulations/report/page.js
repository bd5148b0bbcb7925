"use strict";
// The moment that the topology shows, and the button that copies the command.
const story = JSON.parse(document.getElementById("story").textContent);
const slider = document.getElementById("moment");
function show() {
  const moment = story.moments[Number(slider.value)];
  document.getElementById("moment-text").value =
    `${moment.time.toFixed(1)} s · ${moment.distinct} distinct root${moment.distinct === 1 ? "" : "s"}`;
  moment.sides.forEach((side, node) => {
    document.getElementById(`node-${node}`).setAttribute("class", "node " + (moment.off.includes(node) ? "off" : `s${side % 8}`));
  });
  for (const [a, b] of story.links) {
    document.getElementById(`link-${a}-${b}`).classList.toggle("cut", moment.sides[a] !== moment.sides[b]);
  }
}
if (slider) { slider.addEventListener("input", show); show(); }
document.getElementById("copy")?.addEventListener("click", (event) => {
  navigator.clipboard?.writeText(story.command).then(() => { event.target.textContent = "copied"; });
});
