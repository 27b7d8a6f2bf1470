"use strict";
// Ranked lists that are filtered and turned over page by page, and the map of embeddings. The address says what is
// shown: #page=2&camera=3&ap=0-0.5&identity=7. All text goes to the page as text, never as HTML.
{
  const PER_PAGE = 20;
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const percent = (share) => `${(100 * share).toFixed(1)}%`;

  const element = (tag, attributes, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  };

  // ---------------------------------------------------------------------------------------------------------- images

  const source = (thumbnail) => (thumbnail < 0 ? "" : `data:image/jpeg;base64,${data.thumbnails[thumbnail]}`);

  const image = (number) => {
    const [name, identity, cameras, thumbnail] = data.images[number];
    return {
      name,
      identity: data.identities[identity],
      cameras: cameras.map((camera) => data.cameras[camera]),
      source: source(thumbnail),
    };
  };

  const shown = ({ name, source }, text) => {
    if (source) return element("img", { src: source, alt: text, title: name });
    return element("span", { class: "unknown", title: name }, name);
  };

  // ----------------------------------------------------------------------------------------------------------- state

  const readState = () => {
    const given = new URLSearchParams(location.hash.slice(1));
    const ap = /^([\d.]+)-([\d.]+)$/.exec(given.get("ap") ?? "");
    return {
      page: Math.max(1, parseInt(given.get("page"), 10) || 1),
      camera: given.get("camera") ?? "",
      identity: given.get("identity") ?? "",
      low: ap ? Number(ap[1]) : 0,
      high: ap ? Number(ap[2]) : 1,
    };
  };

  const address = ({ page = 1, camera = "", identity = "", low = 0, high = 1 }) => {
    const kept = new URLSearchParams({ page });
    if (camera) kept.set("camera", camera);
    if (low > 0 || high < 1) kept.set("ap", `${low}-${high}`);
    if (identity) kept.set("identity", identity);
    return `#${kept}`;
  };

  const matches = ([number, ap], { camera, identity, low, high }) => {
    const [, pid, cameras] = data.images[number];
    if (camera && data.cameras[cameras[0]] !== camera) return false;
    if (identity && data.identities[pid] !== identity) return false;
    if (low <= 0 && high >= 1) return true; // also queries without a match, which have no AP
    return ap !== null && low <= ap && ap <= high;
  };

  // ----------------------------------------------------------------------------------------------------------- lists

  const fact = (name, value) => element("div", {}, element("dt", {}, name), element("dd", {}, value));
  const link = (target, text) => element("a", { href: target }, text);

  const result = ([number, isRight, distance], place) => {
    const found = image(number);
    const cameras = found.cameras.join(", ");
    const [kind, mark] = isRight ? ["right", "✓"] : ["wrong", "✗"];
    const about = `rank ${place + 1}, ${kind}, identity ${found.identity}` + (cameras && `, camera ${cameras}`);
    const far = element("span", { class: "faint" }, String(distance));
    return element(
      "li",
      { class: kind, title: `${found.name}\n${about}\ndistance ${distance}` },
      shown(found, about),
      element("small", { "aria-hidden": "true" }, `${place + 1} ${mark} `, far),
      element("small", { class: "faint" }, cameras ? `${found.identity} · cam ${cameras}` : found.identity),
    );
  };

  const card = ([number, ap, first, relevant, results, strip, heat]) => {
    const query = image(number);
    const facts = element(
      "dl",
      {},
      fact("AP", ap === null ? "no match" : percent(ap)),
      fact("first match", first === null ? "-" : `rank ${first}`),
      fact("right items", String(relevant)),
      fact("identity", link(address({ identity: query.identity }), query.identity)),
    );
    for (const camera of query.cameras) facts.append(fact("camera", link(address({ camera }), camera)));
    if (strip) facts.append(fact("strip", link(strip, "PNG")));
    const beside = (text, ...children) => element("li", { class: "query" }, ...children, element("small", {}, text));
    const row = element("ol", {}, beside("query", shown(query, "the query")));
    if (heat) {
      const map = shown({ name: "heat map", source: source(heat[0]) }, `heat map of ${query.name}`);
      row.append(beside("heat map", element("a", { href: heat[1] }, map)));
    }
    row.append(...(results ?? []).map(result));
    const parts = [element("h3", {}, query.name), facts, row];
    if (!results) parts.push(element("p", {}, "Results are kept of the worst queries only."));
    return element("article", { class: "ranking" }, ...parts);
  };

  const form = at("filter");

  const show = () => {
    const state = readState();
    const found = data.queries.filter((query) => matches(query, state));
    const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
    const page = Math.min(state.page, pages);
    at("rankings").replaceChildren(...found.slice((page - 1) * PER_PAGE, page * PER_PAGE).map(card));
    at("count").textContent = `${found.length} of ${data.queries.length} queries, page ${page} of ${pages}`;
    if (form.elements.camera) form.elements.camera.value = state.camera;
    form.elements.identity.value = state.identity;
    form.elements.low.value = +(100 * state.low).toFixed(4);
    form.elements.high.value = +(100 * state.high).toFixed(4);
    for (const [name, target] of [["previous", page - 1], ["next", page + 1]]) {
      for (const button of document.querySelectorAll(`button.${name}`)) {
        button.disabled = target < 1 || target > pages;
        button.onclick = () => (location.hash = address({ ...state, page: target }));
      }
    }
    highlight(state.identity);
  };

  form.addEventListener("change", () => {
    const share = (input, otherwise) => (input.value === "" ? otherwise : +(input.valueAsNumber / 100).toFixed(6));
    const { camera, identity, low, high } = form.elements;
    const state = { camera: camera?.value ?? "", identity: identity.value.trim() };
    location.hash = address({ ...state, low: share(low, 0), high: share(high, 1) });
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => (location.hash = address({})));
  addEventListener("hashchange", show);

  // ------------------------------------------------------------------------------------------------------------- map

  const SIZE = 1000;
  const chart = at("map");
  const identityOf = (number) => data.images[number][1];
  const points = data.map.map(([number, x, y, isQuery]) => ({ number, x, y, isQuery, identity: identityOf(number) }));
  points.sort((a, b) => a.identity - b.identity); // arrow keys step through one identity after the other
  const groups = new Map();
  let chosen = -1;
  let isNear = false; // whether the pointer is at the chosen point
  let marked = [];

  const mark = (identity) => {
    for (const shape of marked) shape.classList.remove("same");
    marked = groups.get(identity) ?? [];
    for (const shape of marked) shape.classList.add("same");
    chart.classList.toggle("chosen", marked.length > 0);
  };

  const choose = (place) => {
    chosen = place;
    const point = points[place];
    const found = image(point.number);
    mark(point.identity);
    const ring = at("ring");
    ring.setAttribute("cx", point.x);
    ring.setAttribute("cy", point.y);
    ring.removeAttribute("visibility");
    const facts = [fact("identity", link(address({ identity: found.identity }), found.identity))];
    for (const camera of found.cameras) facts.push(fact("camera", camera));
    facts.push(fact(point.isQuery ? "query" : "gallery image", found.name));
    at("point").replaceChildren(shown(found, found.name), element("dl", {}, ...facts));
  };

  const highlight = (name) => {
    if (!chart) return;
    mark(name ? data.identities.indexOf(name) : -1);
    at("ring").setAttribute("visibility", "hidden");
  };

  const drawMap = () => {
    const made = (tag, attributes) => {
      const shape = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [name, value] of Object.entries(attributes)) shape.setAttribute(name, value);
      return shape;
    };
    const radius = points.length > 500 ? 6 : 9;
    const side = 1.2 * radius;
    for (const { x, y, isQuery, identity } of points) {
      const shape = isQuery
        ? made("path", { d: `M${x} ${y - side}l${side} ${side} ${-side} ${side} ${-side} ${-side}z` })
        : made("circle", { cx: x, cy: y, r: radius });
      shape.style.setProperty("--hue", Math.round(identity * 137.508) % 360); // neighbouring numbers, distant colours
      if (!groups.has(identity)) groups.set(identity, []);
      groups.get(identity).push(shape);
      chart.append(shape);
    }
    chart.append(made("circle", { id: "ring", r: 16, visibility: "hidden" }));
    chart.addEventListener("pointermove", (event) => {
      const box = chart.getBoundingClientRect();
      const scale = (SIZE + 40) / box.width;
      const [x, y] = [(event.clientX - box.left) * scale - 20, (event.clientY - box.top) * scale - 20];
      const distances = points.map((point) => Math.hypot(point.x - x, point.y - y));
      const nearest = distances.reduce((best, distance, i) => (distance < distances[best] ? i : best), 0);
      isNear = distances[nearest] < 30;
      if (isNear && nearest !== chosen) choose(nearest);
    });
    const filter = () => (location.hash = address({ identity: image(points[chosen].number).identity }));
    chart.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && chosen >= 0) filter();
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      choose((chosen + step + points.length) % points.length);
    });
    chart.addEventListener("click", () => isNear && filter());
  };

  if (chart) drawMap();
  show();
}
