"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const panel = document.getElementById("panel");
  const tokens = [...document.querySelectorAll(".token")];
  const bounds = { surprise: [1, 2.5, 4.5, 7], entropy: [0.5, 1.5, 3, 4.5], rank: [1, 3, 10, 40] };
  const key = { surprise: "bits", entropy: "entropy", rank: "rank" };
  const of = (element) => data.stories[element.dataset.story].tokens[element.dataset.token];
  const digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_";
  let pinned = null;
  let head = ""; // of which the looks are shown; empty for all heads together
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
  const chosen = (name) => document.querySelector(`input[name=${name}]:checked`).value;
  const quoted = (text) => JSON.stringify(text);

  function tint(view) {
    for (const element of tokens) {
      const value = view === "off" ? undefined : of(element)[key[view]];
      heat(element, value === undefined ? 0 : bounds[view].filter((bound) => value > bound).length);
    }
  }

  function heat(element, strength, kind = "t") {
    for (const step of [1, 2, 3, 4]) element.classList.toggle(kind + step, step === strength);
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
    if (token.bits !== undefined) fact("surprise", token.bits.toFixed(1) + " bits");
    if (token.rank !== undefined) fact("place", "number " + token.rank + " of the model");
    if (token.entropy !== undefined) fact("the model's doubt", token.entropy.toFixed(1) + " bits");
    if (token.chance !== undefined) fact("chance", percent(token.chance) + " by this decoder");
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
    if (chosen("view") === "inside") showInside(element, token);
    else showChoice(token);
    for (const other of tokens) other.classList.remove("chosen");
    element.classList.add("chosen");
    looks(element);
  }

  function showChoice(token) {
    if (token.alternatives) {
      add(panel, "h3", "What else the model had in mind");
      for (const [name, share] of token.alternatives) bar(quoted(name), share, name === token.text);
    }
    if (token.funnel) {
      add(panel, "h3", "What each stage left");
      for (const [stage, left, mass] of token.funnel) bar(stage + ": " + left.toLocaleString("en"), mass, false);
    }
  }

  function showInside(element, token) {
    if (!token.layers) {
      add(panel, "p", "Nothing is known of the inside of the model at this token.", "dim");
      return;
    }
    add(panel, "h3", "What it would have said after each layer");
    token.layers.forEach(([name, share], layer) => bar(layer + " " + quoted(name), share, name === token.text));
    const [layers, heads] = data.stories[element.dataset.story].shape;
    if (token.heads) showHeads(element, token, layers, heads);
    if (token.parts) showParts(token, layers, heads);
  }

  // A head: the share of BOS, then two digits of a place and one of a share for each token that it looked at most.
  function unpacked(token) {
    return token.heads.split(" ").map((text) => ({
      idle: digits.indexOf(text[0]) / 63,
      looks: [...text.slice(1).matchAll(/(.)(.)(.)/g)].map(([, a, b, c]) =>
        [64 * digits.indexOf(a) + digits.indexOf(b), digits.indexOf(c) / 63]),
    }));
  }

  function grid(caption, columns, layers, cell) {
    const table = add(panel, "table", undefined, "grid");
    add(table, "caption", caption);
    const top = add(table, "tr");
    add(top, "td");
    for (const column of columns) add(top, "th", column).scope = "col";
    for (let layer = 0; layer < layers; layer++) {
      const row = add(table, "tr");
      add(row, "th", "layer " + (layer + 1)).scope = "row";
      columns.forEach((_, column) => cell(add(row, "td"), layer, column));
    }
  }

  function showHeads(element, token, layers, heads) {
    add(panel, "h3", "Where its heads looked");
    const choose = (parent, value, label) => {
      const radio = add(parent, "input");
      Object.assign(radio, { type: "radio", name: "head", value, checked: value === head });
      radio.setAttribute("aria-label", label);
      radio.addEventListener("change", () => { head = value; pinned = element; looks(element); });
    };
    const all = add(panel, "label");
    choose(all, "", "all heads together");
    add(all, "span", " all heads together");
    const known = unpacked(token);
    const names = Array.from({ length: heads }, (_, index) => String(index + 1));
    grid("Choose a head: the story is tinted by where it looked. Pale: it rested on the beginning of the text.", names, layers, (cell, layer, index) => {
      const number = layer * heads + index;
      const busy = 1 - known[number].idle;
      heat(cell, Math.ceil(4 * busy - 0.2));
      cell.title = percent(busy) + " for words";
      choose(cell, String(number), "layer " + (layer + 1) + ", head " + (index + 1) + ", " + percent(busy) + " for words");
    });
  }

  function showParts(token, layers, heads) {
    add(panel, "h3", "Without a part");
    const names = [...Array.from({ length: heads }, (_, index) => String(index + 1)), "all", "ff"];
    grid("By how many bits the token is less likely without a head, all heads of a layer (its attention), or its feed-forward (ff).", names, layers, (cell, layer, index) => {
      const bits = (digits.indexOf(token.parts[layer * names.length + index]) - 32) / 4;
      const edge = Math.abs(bits) > 7.6 ? (bits > 0 ? "> " : "< ") : "";
      cell.textContent = edge + (bits < 0 ? "−" : "") + Math.abs(bits).toFixed(1);
      heat(cell, [0.4, 1, 2.5, 5].filter((bound) => Math.abs(bits) > bound).length, bits < 0 ? "n" : "t");
    });
  }

  function looks(element) {
    const token = of(element);
    const inside = chosen("view") === "inside";
    const seen = new Map(inside && head !== "" ? (token.heads ? unpacked(token)[head].looks : []) : token.looked_at);
    if (!inside) tint(chosen("tint"));
    for (const other of tokens) {
      const share = other.dataset.story === element.dataset.story ? seen.get(Number(other.dataset.token)) || 0 : 0;
      other.classList.toggle("seen", share > 0 && !inside);
      if (inside) heat(other, [0, 0.1, 0.25, 0.5].filter((bound) => share > bound).length);
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
  for (const radio of document.querySelectorAll("input[name=view]")) {
    radio.addEventListener("change", () => {
      document.getElementById("tints").disabled = radio.value === "inside";
      show(document.querySelector(".chosen") || home);
    });
  }
  tint("surprise");
})();
