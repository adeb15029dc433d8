"use strict";
// Everything is in the page already; without this script all pictures are shown below each other.
(() => {
  const number = (value) => Number(value.toPrecision(4)).toString();
  const thousands = (value) => Math.round(value).toLocaleString("en");

  function nearest(sorted, value) {
    let low = 0, high = sorted.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (sorted[middle] <= value) low = middle; else high = middle;
    }
    return Math.abs(sorted[low] - value) <= Math.abs(sorted[high] - value) ? low : high;
  }

  function setUp(figure) {
    const { scale: [first, last, left, right], curves } = JSON.parse(figure.querySelector("script").textContent);
    const svg = figure.querySelector("svg");
    const cross = svg.querySelector(".cross"), shown = svg.querySelector(".shown");
    const marks = svg.querySelectorAll(".mark"), values = figure.querySelectorAll(".legend b");
    const at = figure.querySelector(".at span");
    const longest = curves.reduce((a, b) => (b.x.length > a.x.length ? b : a));
    let place = longest.x.length - 1;

    const across = (x) => left + (x - first) / (last - first) * (right - left);
    const stand = (line, x) => {
      line.setAttribute("x1", across(x));
      line.setAttribute("x2", across(x));
      line.toggleAttribute("hidden", false);
    };

    function read(index, pointing) {
      place = Math.min(Math.max(index, 0), longest.x.length - 1);
      const x = longest.x[place];
      at.textContent = thousands(x);
      curves.forEach((curve, i) => {
        const near = nearest(curve.x, x);
        values[i].textContent = number(curve.y[near]);
        marks[i].setAttribute("cx", curve.places[near][0]);
        marks[i].setAttribute("cy", curve.places[near][1]);
        marks[i].toggleAttribute("hidden", !pointing);
      });
      stand(cross, x);
      cross.toggleAttribute("hidden", !pointing);
    }

    const end = () => read(longest.x.length - 1, false);
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
      read(nearest(longest.x, first + (x - left) / (right - left) * (last - first)), true);
    });
    svg.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") end(); });
    figure.addEventListener("blur", end);
    figure.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity };
      if (!(event.key in steps)) return;
      event.preventDefault();
      read(place + steps[event.key], true);
    });
    return (images) => stand(shown, Math.min(Math.max(images, first), last));
  }

  const show = [...document.querySelectorAll("figure.chart")].map(setUp);

  const slider = document.getElementById("slider");
  if (slider) {
    const pictures = [...document.querySelectorAll("#samples-over-time img")];
    const seen = document.getElementById("seen"), play = document.getElementById("play");
    let timer = null;

    function turn() {
      const current = Number(slider.value);
      pictures.forEach((picture, i) => picture.toggleAttribute("hidden", i !== current));
      const images = Number(pictures[current].dataset.images);
      seen.textContent = thousands(images);
      slider.setAttribute("aria-valuetext", `${thousands(images)} images`);
      show.forEach((mark) => mark(images));
    }

    function stop() {
      clearInterval(timer);
      timer = null;
      play.textContent = "Play";
    }

    function step(by) {
      slider.value = Number(slider.value) + by;
      turn();
    }

    slider.addEventListener("input", () => { stop(); turn(); });
    document.getElementById("earlier").addEventListener("click", () => { stop(); step(-1); });
    document.getElementById("later").addEventListener("click", () => { stop(); step(1); });
    play.addEventListener("click", () => {
      if (timer) return stop();
      if (slider.value === slider.max) slider.value = 0;
      turn();
      play.textContent = "Stop";
      timer = setInterval(() => { step(1); if (slider.value === slider.max) stop(); }, 500);
    });
    slider.closest(".control").hidden = pictures.length < 2;
    turn();
  }
})();
