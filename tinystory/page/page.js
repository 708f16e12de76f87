"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const panel = document.getElementById("panel");
  const tokens = [...document.querySelectorAll(".token")];
  const bounds = { surprise: [1, 2.5, 4.5, 7], entropy: [0.5, 1.5, 3, 4.5], rank: [1, 3, 10, 40] };
  const key = { surprise: "bits", entropy: "entropy", rank: "rank" };
  const of = (element) => data.stories[element.dataset.story].tokens[element.dataset.token];
  let pinned = null;
  let home = tokens[0];

  const add = (parent, tag, text, name) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (name) element.className = name;
    parent.append(element);
    return element;
  };
  const percent = (share) =>
    share >= 0.0995 ? Math.round(share * 100) + " %" : share && share < 0.0005 ? "< 0.1 %" : (share * 100).toFixed(1) + " %";
  const quoted = (text) => JSON.stringify(text);

  function tint(view) {
    for (const element of tokens) {
      const value = view === "off" ? null : of(element)[key[view]];
      element.classList.remove("t1", "t2", "t3", "t4");
      const heat = value === null || value === undefined ? 0 : bounds[view].filter((bound) => value > bound).length;
      if (heat) element.classList.add("t" + heat);
    }
  }

  function bar(name, share, taken) {
    const row = add(panel, "div", undefined, taken ? "bar taken" : "bar");
    add(row, "span", (taken ? "→ " : "") + name, "name");
    add(add(row, "span", undefined, "room"), "div", undefined, "full").style.width = 100 * share + "%";
    add(row, "span", percent(share), "share");
  }

  function facts(token, story) {
    const list = add(panel, "dl");
    const fact = (name, value) => { add(list, "dt", name); add(list, "dd", value); };
    if (token.bits !== null) fact("surprise", token.bits.toFixed(1) + " bits");
    if (token.rank !== null) fact("place", "number " + token.rank + " of the model");
    if (token.entropy !== null) fact("the model's doubt", token.entropy.toFixed(1) + " bits");
    if (token.chance !== null) fact("chance", percent(token.chance) + " by this decoder");
    if (token.luck) fact("luck", signed(token.luck[0]) + " for it, " + signed(token.luck[1]) + " for the likeliest");
    if (token.forbidden) fact("not possible", data.whatif + ": removed by " + token.forbidden);
    const spec = token.typed ? "typed" : data.stories[story].specs[token.turn];
    fact("from", (spec ? spec + ", " : "") + "turn " + token.turn);
  }
  const signed = (number) => (number >= 0 ? "+" : "−") + Math.abs(number).toFixed(1);

  function show(element) {
    const token = of(element);
    panel.replaceChildren();
    add(panel, "h2", quoted(token.text));
    facts(token, element.dataset.story);
    if (token.alternatives.length) {
      add(panel, "h3", "What else the model had in mind");
      for (const [name, share] of token.alternatives) bar(quoted(name), share, name === token.name);
    }
    if (token.funnel.length) {
      add(panel, "h3", "What each stage left");
      for (const [stage, left, mass] of token.funnel) bar(stage + ": " + left.toLocaleString("en"), mass, false);
    }
    if (token.layers.length) {
      add(panel, "h3", "What it would have said after each layer");
      token.layers.forEach(([name, share], layer) => bar(layer + " " + quoted(name), share, name === token.name));
    }
    for (const other of tokens) other.classList.remove("seen", "chosen");
    element.classList.add("chosen");
    for (const [index] of token.looked_at) {
      const seen = document.querySelector(`.token[data-story="${element.dataset.story}"][data-token="${index}"]`);
      if (seen) seen.classList.add("seen");
    }
  }

  function move(element, step) {
    const next = tokens[tokens.indexOf(element) + step];
    if (next) next.focus();
  }

  function reach(element) { // the Tab key comes to one token only, the last one that was chosen
    home.tabIndex = -1;
    element.tabIndex = 0;
    home = element;
  }

  for (const element of tokens) {
    element.addEventListener("pointerenter", () => { if (!pinned) show(element); });
    element.addEventListener("focus", () => { reach(element); show(element); });
    element.addEventListener("click", () => { pinned = pinned === element ? null : element; element.focus(); show(element); });
    element.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 }[event.key];
      if (step) { event.preventDefault(); move(element, step); }
      if (event.key === "Escape") pinned = null;
    });
  }
  if (home) home.tabIndex = 0;
  for (const radio of document.querySelectorAll("input[name=tint]")) {
    radio.addEventListener("change", () => tint(radio.value));
  }
  tint("surprise");
})();
