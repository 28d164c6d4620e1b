"use strict";

// Durations come from the database with the page. This browser adds the time since then, by its own
// clock, of which only differences count.
(() => {
  const human = (seconds) => {
    const two = (first, unit, second, below) => first + unit + (second ? ` ${second}${below}` : "");
    const whole = Math.floor(seconds);
    if (whole < 60) return `${whole}s`;
    if (whole < 3600) return two(Math.floor(whole / 60), "m", whole % 60, "s");
    if (whole < 86400) return two(Math.floor(whole / 3600), "h", Math.floor((whole % 3600) / 60), "m");
    return two(Math.floor(whole / 86400), "d", Math.floor((whole % 86400) / 3600), "h");
  };

  const begin = performance.now();
  const passed = () => (performance.now() - begin) / 1000;
  const left = [...document.querySelectorAll("[data-dblock-left]")];
  const ages = [...document.querySelectorAll("[data-dblock-age]")];

  const show = () => {
    for (const element of left) {
      const seconds = Number(element.dataset.dblockLeft) - passed();
      element.textContent = seconds > 0 ? human(seconds) : element.dataset.dblockOver;
    }
    for (const element of ages) {
      element.textContent = human(Number(element.dataset.dblockAge) + passed());
    }
  };

  if (left.length || ages.length) {
    setInterval(show, 1000);
  }
})();
