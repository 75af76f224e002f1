// The page: a client of the HTTP API at /api/v1, and of nothing else. Texts from the service only ever become text nodes.
"use strict";

const API = "/api/v1";
const ALL = "all tasks";
const NO_TASKS = "This service has no tasks yet.";
const $ = id => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function label(element, text) {
  element.setAttribute("aria-label", text);
  return element;
}

// ---------------------------------------------------------------- the service

class Refused extends Error {}

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(API + path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The service cannot be reached. Is it still running?");
  }
  if (answer.ok) return answer;
  const content = await answer.json().catch(() => ({}));
  throw new Refused(sentence(content.error ?? `The service answered ${answer.status}.`));
}

const sentence = text => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
const words = name => name.replaceAll("_", " ");
const seconds = value => value < 9.95 ? `${value.toFixed(1)} s` : value < 60 ? `${Math.round(value)} s`
  : value < 3600 ? `${Math.floor(value / 60)} min ${Math.round(value % 60)} s` : `${Math.floor(value / 3600)} h ${Math.round(value / 60) % 60} min`;
const percent = share => `${Math.round(100 * share)}%`;
const bytes = value => value < 1e3 ? `${value} ${value === 1 ? "byte" : "bytes"}` : value < 1e6 ? `${(value / 1e3).toPrecision(3)} kB` : value < 1e9 ? `${(value / 1e6).toPrecision(3)} MB` : `${(value / 1e9).toPrecision(3)} GB`;
const number = value => value == null ? "–" : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));

function show(where, error) {
  where.hidden = !error;
  where.textContent = error ? (error instanceof Refused ? error.message : `Something went wrong in the page: ${error.message}`) : "";
}

// ---------------------------------------------------------------- what there is

let service = { tasks: [], samples: [], limits: {} };
let chosen = null;        // the name of a task, or ALL; null where there are no tasks
let image = null;         // {blob, name, url, results: Map of task and form to {url, size, ms, scores}}
let running = null;       // the AbortController of what runs now
let generation = 0;       // counts images: an answer for an earlier one is dropped

const info = task => service.tasks.find(one => one.name === task);
const forms = task => {
  const all = info(task)?.forms ?? [];
  return all.includes("scores") ? ["scores"] : all;
};
const form = task => {
  const asked = $("forms").querySelector(":checked")?.value;
  return forms(task).includes(asked) ? asked : forms(task)[0];
};
const whole = () => !image?.small || $("sizes").querySelector(":checked")?.value === "full";
const key = (task, how) => JSON.stringify([task, how, whole()]);

async function load(choose) {
  service = await (await ask("/tasks")).json();
  const count = service.tasks.length;
  $("about").textContent = count > 1 ? `One frozen network, ${count} tasks.` : count ? "One frozen network, one task." : "One frozen network.";
  const pixels = Math.min(service.limits.pixels, ...service.tasks.map(task => task.pixels));
  $("limits").textContent = `Up to ${Number((pixels / 1e6).toPrecision(2))} megapixels and ${service.limits.upload_bytes / 1e6} MB. Nothing leaves this service.`;
  $("tab-teach").hidden = !service.teaches;
  chosen = choose ?? ((chosen === ALL && count > 1) || info(chosen) ? chosen : count > 1 ? ALL : service.tasks[0]?.name ?? null);
  drawTasks();
  drawForms();
  invite();
}

function invite() {
  if (!image) $("status").textContent = chosen ? `Choose an image, and ${chosen === ALL ? "every task" : chosen} runs on it.` : NO_TASKS;
}

function drawSamples() {
  $("samples").replaceChildren(...service.samples.map(name => {
    const button = make("button", { type: "button", title: name }, make("img", { src: `${API}/samples/${name}`, alt: "", loading: "lazy" }));
    button.onclick = async () => {
      try {
        take(await (await ask(`/samples/${name}`)).blob(), `${name}.png`);
        button.setAttribute("aria-pressed", "true");
      } catch (error) {
        show($("error"), error);
      }
    };
    return label(button, name);
  }));
}

function drawTasks() {
  const names = [...(service.tasks.length > 1 ? [ALL] : []), ...service.tasks.map(task => task.name)];
  $("tasks").replaceChildren(...names.map(name => {
    const button = make("button", { type: "button" });
    const result = name === ALL ? null : image?.results.get(key(name, form(name)));
    const thumb = result?.url ? make("img", { src: result.url, alt: "" }) : make("span", { textContent: name === ALL ? "▦" : "" });
    thumb.className = "thumb";
    const kind = name === ALL ? `${service.tasks.length}, one by one` : words(info(name).kind);
    button.append(thumb, make("span", { className: "name", textContent: name === ALL ? "All tasks" : name }, make("small", { textContent: kind })));
    button.dataset.task = name;
    button.setAttribute("aria-pressed", String(name === chosen));
    button.onclick = () => choose(name);
    return label(button, name === ALL ? ALL : `${name}, ${kind}`);
  }));
}

function drawForms() {
  const names = chosen === ALL ? [] : forms(chosen);
  const before = $("forms").querySelector(":checked")?.value;
  $("forms").hidden = names.length < 2;
  $("forms").replaceChildren(...names.map((name, index) => {
    const input = make("input", { type: "radio", name: "form", value: name, checked: names.includes(before) ? name === before : index === 0 });
    input.onchange = () => run([chosen]);
    return make("label", {}, input, name);
  }));
}

function choose(name) {
  chosen = name;
  for (const button of $("tasks").children) {
    const pressed = button.dataset.task === name, row = $("tasks").getBoundingClientRect(), box = button.getBoundingClientRect();
    button.setAttribute("aria-pressed", String(pressed));
    if (pressed) $("tasks").scrollLeft += box.x + box.width / 2 - row.x - row.width / 2;  // on a phone the row is longer than the screen
  }
  drawForms();
  invite();
  if (image) run(name === ALL ? service.tasks.map(task => task.name) : info(name) ? [name] : []);
}

// ---------------------------------------------------------------- the image

async function take(blob, name) {
  running?.abort();
  const mine = ++generation;
  show($("error"), null);
  $("status").textContent = "";
  for (const button of $("samples").children) button.setAttribute("aria-pressed", "false");
  if (blob.size > service.limits.upload_bytes) {
    return show($("error"), new Refused(`${name} has ${bytes(blob.size)}: expected ${bytes(service.limits.upload_bytes)} at most. Make it smaller.`));
  }
  let url = URL.createObjectURL(blob);
  try {
    await decoded(url).catch(async () => {  // a format that this browser does not know, or no image
      URL.revokeObjectURL(url);
      $("status").textContent = `Opens ${name} …`;
      url = URL.createObjectURL(await (await ask("/preview", { method: "POST", body: blob })).blob());
      await decoded(url);
    });
  } catch (error) {
    $("status").textContent = "";
    return mine === generation && show($("error"), error);
  }
  const small = await smaller(await decoded(url));
  if (mine !== generation) return URL.revokeObjectURL(url);
  if (image) for (const one of [image, ...image.results.values()]) URL.revokeObjectURL(one.url);
  image = { blob, name, url, small, results: new Map() };
  $("before").src = url;
  await $("before").decode();
  $("before").alt = `Input: ${name}`;
  drawSizes();
  drawTasks();
  draw();
  choose(chosen);
}

async function decoded(url) {
  const probe = new Image();
  probe.src = url;
  await probe.decode();
  return probe;
}
const sides = (width, height) => `${width} × ${height}`;
const size = picture => sides(picture.naturalWidth, picture.naturalHeight);

// A photo of a camera takes minutes at its full size. It is tried at this one, its longer side in pixels, until the user asks for more.
const QUICK = 1024;

async function smaller(picture) {  // null for an image that is small already
  const scale = QUICK / Math.max(picture.naturalWidth, picture.naturalHeight);
  if (scale >= 1) return null;
  const [width, height] = [picture.naturalWidth, picture.naturalHeight].map(side => Math.max(1, Math.round(scale * side)));
  const canvas = make("canvas", { width, height }), context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, width, height);
  const blob = await new Promise(done => canvas.toBlob(done, "image/png"));  // null where the browser has no memory for it
  return blob && { blob, size: sides(width, height) };
}

function drawSizes() {
  $("sizes").hidden = !image.small;
  const named = image.small ? { quick: `${image.small.size}, quick`, full: `${size($("before"))}, full size` } : {};
  $("sizes").replaceChildren(...Object.entries(named).map(([value, text]) => {
    const input = make("input", { type: "radio", name: "size", value, checked: value === "quick" });
    input.onchange = () => choose(chosen);
    return make("label", {}, input, text);
  }));
}

const fileOf = list => [...list].find(item => item.type?.startsWith("image/")) ?? [...list][0];

$("file").onchange = () => {
  if ($("file").files.length) take($("file").files[0], $("file").files[0].name);
  $("file").value = "";
};
document.addEventListener("paste", event => {
  const file = fileOf(event.clipboardData?.files ?? []);
  if (file && !$("images").hidden) take(file, file.name || "pasted image");
});
$("paste").onclick = async () => {
  try {
    for (const item of await navigator.clipboard.read()) {
      const type = item.types.find(one => one.startsWith("image/"));
      if (type) return take(await item.getType(type), "pasted image");
    }
    show($("error"), new Refused("There is no image in the clipboard. Copy one first."));
  } catch {
    show($("error"), new Refused("The browser does not let the page read the clipboard. Click the page, then press Ctrl+V (⌘V on a Mac)."));
  }
};

function dropsOn(element, mark, drop) {
  element.addEventListener("dragover", event => {
    event.preventDefault();
    mark.classList.add("over");
  });
  element.addEventListener("dragleave", event => { if (!element.contains(event.relatedTarget)) mark.classList.remove("over"); });
  element.addEventListener("drop", event => {
    event.preventDefault();
    mark.classList.remove("over");
    drop(event.dataTransfer);
  });
}
dropsOn($("images"), $("stage"), data => {
  const file = fileOf(data.files);
  if (file) take(file, file.name);
});

// ---------------------------------------------------------------- running

async function run(tasks) {
  if (!image) return;
  running?.abort();
  const stop = running = new AbortController();
  const mine = generation, body = whole() ? image.blob : image.small.blob, due = tasks.filter(task => !image.results.has(key(task, form(task))));
  show($("error"), null);
  draw();
  tell(due, "waits");
  $("cancel").hidden = $("progress").hidden = due.length === 0;
  const failed = [];
  for (const [done, task] of due.entries()) {
    Object.assign($("progress"), due.length > 1 ? { max: due.length, value: done } : {});
    if (due.length === 1) $("progress").removeAttribute("value");
    $("status").textContent = due.length > 1 ? `${task} (${done + 1} of ${due.length}) …` : `${task} …`;
    mark(task, true);
    tell([task], "runs …");
    try {
      const how = form(task), place = key(task, how);
      const answer = await ask(`/run/${encodeURIComponent(task)}?form=${how}`, { method: "POST", body, signal: stop.signal });
      const ms = Number(answer.headers.get("server-timing")?.match(/dur=([\d.]+)/)?.[1]);
      const result = how === "scores" ? { scores: (await answer.json()).scores } : { url: URL.createObjectURL(await answer.blob()) };
      if (result.url) result.size = size(await decoded(result.url));
      if (mine !== generation) return result.url && URL.revokeObjectURL(result.url);
      image.results.set(place, { ...result, ms });
    } catch (error) {
      if (mine !== generation || stop !== running) return;
      if (stop.signal.aborted) break;
      failed.push([task, error]);
    } finally {
      mark(task, false);
    }
    if (stop !== running) return;
    drawThumb(task);
    draw();
  }
  $("cancel").hidden = $("progress").hidden = true;
  tell(due.filter(task => !image.results.has(key(task, form(task)))), "no result");
  if (failed.length) {
    const [task, error] = failed[0];
    show($("error"), error instanceof Refused ? new Refused(`${task}: ${error.message}`) : error);
  }
  if (stop.signal.aborted || failed.length) $("status").textContent = stop.signal.aborted ? "Cancelled." : "";
  else said();
}

$("cancel").onclick = () => running?.abort();

function mark(task, busy) {
  for (const button of $("tasks").children) if (button.dataset.task === task) button.classList.toggle("busy", busy);
}

function tell(tasks, text) {  // in the tiles of tasks, where results will be
  for (const button of $("gallery").querySelectorAll(".open")) if (tasks.includes(button.dataset.task)) button.querySelector("span").textContent = text;
}

function drawThumb(task) {
  const url = image.results.get(key(task, form(task)))?.url;
  const button = [...$("tasks").children].find(one => one.dataset.task === task);
  if (url && button) button.querySelector(".thumb").replaceWith(make("img", { src: url, alt: "", className: "thumb" }));
}

function said() {
  if (chosen === null) return void ($("status").textContent = NO_TASKS);
  const names = chosen === ALL ? service.tasks.map(task => task.name) : [chosen];
  const results = names.map(task => image.results.get(key(task, form(task)))).filter(Boolean);
  if (results.length === names.length) {
    const total = results.reduce((sum, result) => sum + result.ms, 0) / 1000;
    const given = whole() ? size($("before")) : image.small.size, got = chosen === ALL ? given : results[0].size ?? given;
    $("status").textContent = `${chosen}: ${got === given ? given : `${given} → ${got}`} pixels in ${seconds(total)}`;
  }
}

function draw() {
  const all = chosen === ALL, how = all ? null : form(chosen);
  const result = all ? null : image.results.get(key(chosen, how));
  $("drop").hidden = true;
  $("gallery").hidden = !all;
  $("scores").hidden = !result?.scores;
  $("compare").hidden = all;
  $("compare").classList.toggle("input-only", !result?.url);
  if (all) drawGallery();
  else {
    const url = result?.url ?? image.url;
    if ($("after").src !== url) $("after").src = url;
    const { naturalWidth: width, naturalHeight: height } = $("before");
    if (height) {  // small images are enlarged, but no more than four times
      $("compare").style.setProperty("--ratio", width / height);
      $("compare").style.setProperty("--most", `${Math.max(4 * width, 200)}px`);
    }
    $("after").alt = result?.url ? `Result of ${chosen}` : `Input: ${image.name}`;
  }
  const classes = result?.url && info(chosen).colours.length ? info(chosen) : null;
  $("legend").hidden = !classes;
  $("legend").replaceChildren(...(classes?.classes ?? []).map((name, index) => {
    const swatch = make("i");
    swatch.style.background = `rgb(${classes.colours[index].join(" ")})`;
    return make("li", {}, swatch, make("span", { textContent: name }));
  }));
  $("scores").replaceChildren(...Object.entries(result?.scores ?? {}).slice(0, 5).map(([name, score]) =>
    make("li", {}, make("span", { textContent: name }), make("meter", { value: score, max: 1 }), make("b", { textContent: percent(score) }))));
  $("download").hidden = !result?.url;
  if (result?.url) Object.assign($("download"), { href: result.url, download: fileName(chosen) });
}

const fileName = task => `${image.name.replace(/\.[^.]*$/, "")}-${task}.png`;

function drawGallery() {  // a tile stays while its image comes, so that the keyboard's focus in it does too
  const names = service.tasks.map(task => task.name), known = JSON.stringify(names);
  if ($("gallery").dataset.of !== known) {
    const input = make("figure", {}, make("img", { alt: "" }), make("figcaption", {}, make("span", { textContent: "Input" })));
    $("gallery").replaceChildren(input, ...names.map(tile));
    $("gallery").dataset.of = known;
  }
  $("gallery").style.setProperty("--ratio", $("before").naturalWidth / $("before").naturalHeight);  // of the room for a result
  const [input, ...tiles] = $("gallery").children;
  if (input.querySelector("img").src !== image.url) input.querySelector("img").src = image.url;
  for (const [index, name] of names.entries()) {
    const { url, scores } = image.results.get(key(name, form(name))) ?? {};
    if (scores) for (const [most, score] of Object.entries(scores).slice(0, 1)) tell([name], `${most} ${percent(score)}`);
    const shown = tiles[index].querySelector("img"), link = tiles[index].querySelector("a");
    shown.hidden = link.hidden = !url;
    tiles[index].querySelector(".open span").hidden = Boolean(url);
    if (url && link.href !== url) shown.src = url;
    if (url) Object.assign(link, { href: url, download: fileName(name) });
  }
}

function tile(name) {
  const button = label(make("button", { className: "open" }, make("img", { alt: "" }), make("span")), `Show ${name}`);
  button.dataset.task = name;
  button.onclick = () => {
    choose(name);  // which hides the tile
    const next = $("compare").classList.contains("input-only") ? [...$("tasks").children].find(one => one.dataset.task === name) : $("slider");
    next.focus({ preventScroll: true });
  };
  const link = label(make("a", { textContent: "Download" }), `Download ${name}`);
  return make("figure", {}, button, make("figcaption", {}, make("span", { textContent: name }), link));
}

// ---------------------------------------------------------------- the slider

function cut(value) {
  const share = Math.min(100, Math.max(0, Math.round(value)));
  $("compare").style.setProperty("--cut", `${share}%`);
  $("slider").setAttribute("aria-valuenow", share);
  $("slider").setAttribute("aria-valuetext", `${share} % input, ${100 - share} % result`);
}
$("compare").addEventListener("pointerdown", event => {
  if (event.button || $("compare").classList.contains("input-only")) return;
  $("compare").setPointerCapture(event.pointerId);
  $("slider").focus({ preventScroll: true });
  follow(event);
  event.preventDefault();
});
$("compare").addEventListener("pointermove", event => { if ($("compare").hasPointerCapture(event.pointerId)) follow(event); });
function follow(event) {
  const box = $("compare").getBoundingClientRect();
  cut(100 * (event.clientX - box.left) / box.width);
}
$("slider").addEventListener("keydown", event => {
  const now = Number($("slider").getAttribute("aria-valuenow"));
  const to = { ArrowLeft: now - 2, ArrowDown: now - 2, ArrowRight: now + 2, ArrowUp: now + 2, PageDown: now - 10, PageUp: now + 10, Home: 0, End: 100 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  cut(to);
});
cut(50);

// ---------------------------------------------------------------- masks

let drawn = 0;

async function drawMasks() {
  $("table").tBodies[0].replaceChildren(...service.tasks.map(task => {
    const metric = task.metrics[task.primary_metric];
    const cells = [
      words(task.kind), task.method === "identity" ? "none (the backbone itself)" : task.method,
      metric == null ? "–" : `${task.primary_metric} ${number(metric)}`,
      task.affected == null ? "–" : `${(100 * task.affected).toFixed(1)} % ${task.effect}`, task.bytes == null ? "–" : bytes(task.bytes),
    ];
    const head = make("th", { scope: "row", textContent: task.name });
    return make("tr", {}, head, ...cells.map(text => make("td", { textContent: text })));
  }));
  const known = JSON.stringify(service.tasks);  // with what was measured of each, and its bytes, as another file of its name has others
  if ($("figures").dataset.of === known) return;
  $("figures").textContent = "Draws the figures …";
  try {
    const { figures } = await (await ask("/masks")).json();
    drawn += 1;  // in the address, or the browser shows the image that it has
    const shown = Object.entries(figures).map(([name, text]) =>
      make("figure", {}, make("img", { src: `${API}/masks/${name}?of=${drawn}`, alt: text })));
    $("figures").replaceChildren(...(shown.length ? shown : ["None of these tasks has a binary mask, so there is nothing to draw."]));
    $("figures").dataset.of = known;
  } catch (error) {
    $("figures").textContent = error.message;
  }
}

// ---------------------------------------------------------------- teach

const KINDS = {
  pairs: {
    name: "Inputs → results", hint: "Ten or more pairs of images of the same size and file name: what goes in, and what shall come out. Drop files, folders or a zip. One zip or folder may hold both, in subfolders inputs and targets.",
    zones: { inputs: ["Inputs", "what the network will be given"], targets: ["Targets", "what it shall make of them"] },
  },
  labels: {
    name: "Images → labels", hint: "Ten or more photos, and label images of the same sizes and names whose pixel values are the numbers of classes. Drop files, folders or a zip. One zip or folder may hold both, in subfolders images and labels.",
    zones: { images: ["Images", "photos"], labels: ["Labels", "PNG, one value a class"] },
  },
  style: {
    name: "A style", hint: "One image, such as a painting. It is learned on your photos, or on sample photos if you add none.",
    zones: { style: ["Style", "one image"], images: ["Photos", "optional; a few dozen are enough"] },
  },
};
const ENDINGS = /\.(jpe?g|jpe|jfif|png|webp|bmp|tiff?|gif)$/i;
let kind = "pairs";
let given = {};           // the files of each zone, as [path, File]
let job = null;
let bounds = {};          // of a training
let polling = 0;
let sending = null;       // the AbortController of this page's upload

function drawKinds() {
  $("kinds").replaceChildren(...Object.entries(KINDS).map(([name, what]) => {
    const input = make("input", { type: "radio", name: "kind", value: name, checked: name === kind });
    input.onchange = () => {
      kind = name;
      drawZones();
    };
    return make("label", {}, input, what.name);
  }));
}

function drawZones() {
  given = {};
  $("kind-hint").textContent = KINDS[kind].hint;
  $("for-classes").hidden = $("for-values").hidden = kind !== "labels";
  $("classes").required = kind === "labels";
  $("zones").replaceChildren(...Object.entries(KINDS[kind].zones).map(([role, [title, hint]]) => {
    const count = make("p", { textContent: hint }), clear = label(make("button", { type: "button", textContent: "Clear", hidden: true }), `${title}: Clear`);
    clear.className = "button";
    const add = files => {
      show($("teach-error"), null);
      try {
        given[role] = joined(role === "style" ? [] : given[role] ?? [], wanted(files)).slice(role === "style" ? -1 : 0);
        const size = given[role].reduce((sum, [, file]) => sum + file.size, 0);
        count.textContent = `${given[role].length} ${given[role].length === 1 ? "file" : "files"}, ${bytes(size)}`;
        clear.hidden = false;
      } catch (error) {
        show($("teach-error"), error);
      }
    };
    clear.onclick = () => {
      delete given[role];
      count.textContent = hint;
      zone.querySelector("input").focus();
      clear.hidden = true;
    };
    const choose = (text, options) => {
      const input = make("input", { type: "file", ...options });
      input.onchange = () => {
        if (input.files.length) add([...input.files].map(file => [file.webkitRelativePath.split("/").slice(1).join("/") || file.name, file]));
        input.value = "";
      };
      const button = make("label", { className: "button" }, text, input);
      label(input, `${title}: ${text}`);
      return button;
    };
    const many = role !== "style";
    const zone = make("div", { className: "zone" }, make("strong", { textContent: title }), count, make("div", { className: "row" },
      choose(many ? "Files or a zip" : "Image", { multiple: many, accept: many ? "image/*,.tif,.tiff,.zip" : "image/*,.tif,.tiff" }),
      ...(many ? [choose("A folder", { webkitdirectory: true })] : []), clear));
    label(zone, title).setAttribute("role", "group");
    dropsOn(zone, zone, async data => {
      const entries = [...data.items].map(item => item.webkitGetAsEntry?.()).filter(Boolean);
      try {  // of several folders the names say what is what
        add((await Promise.all(entries.map(entry => inside(entry, entry.isDirectory && entries.length === 1)))).flat());
      } catch (error) {
        show($("teach-error"), new Refused(`What was dropped cannot be read: ${error.message}`));
      }
    });
    return zone;
  }));
}

function wanted(files) {
  const found = files.filter(([path]) => (ENDINGS.test(path) || /\.zip$/i.test(path)) && !/(^|\/)(\.|__MACOSX)/.test(path));
  if (!found.length) throw new Refused("There is no image and no zip in this.");
  return found;
}

function joined(before, files) {  // a file that is given again counts once; another one of its name would take its place
  const all = new Map(before);
  for (const [path, file] of files) {
    const there = all.get(path);
    if (there && (there.size !== file.size || there.lastModified !== file.lastModified)) {
      throw new Refused(`There is another ${path} already. Clear first, or put all into one folder with subfolders and add that.`);
    }
    all.set(path, file);
  }
  return [...all];
}

async function inside(entry, top) {  // files of a dropped folder, by their paths below it
  if (entry.isFile) return new Promise((resolve, reject) => entry.file(file => resolve([[entry.name, file]]), reject));
  const reader = entry.createReader(), found = [];
  for (let more; (more = await new Promise((resolve, reject) => reader.readEntries(resolve, reject))).length;) found.push(...more);
  const files = (await Promise.all(found.map(one => inside(one, false)))).flat();
  return files.map(([path, file]) => [top ? path : `${entry.name}/${path}`, file]);
}

const list = text => text.split(",").map(part => part.trim()).filter(Boolean);
const post = (path, body) => ask(path, { method: "POST", ...(body && { body: JSON.stringify(body), headers: { "content-type": "application/json" } }) });

$("job").onsubmit = async event => {
  event.preventDefault();
  if (sending) return;
  show($("teach-error"), null);
  const files = Object.keys(KINDS[kind].zones).flatMap(role => (given[role] ?? []).map(([path, file]) => [role, path, file]));
  const { signal } = sending = new AbortController();
  $("start").setAttribute("aria-disabled", "true");  // a disabled button would lose the keyboard's focus
  $("cancel-sending").hidden = false;
  let failed = null;
  try {
    if (!files.length) throw new Refused("Add images first.");
    await post("/teach", {
      name: $("name").value, kind, steps: Number($("steps").value), ...(kind === "labels" && { classes: list($("classes").value), values: labelValues() }),
    });
    try {
      let done = 0;
      for (const [role, path, file] of files) {
        $("teach-status").textContent = `Sends ${++done} of ${files.length} files …`;
        await send(role, path, file, signal);
      }
      signal.throwIfAborted();
      await post("/teach/start");
    } catch (error) {
      await ask("/teach", { method: "DELETE" }).catch(() => {});  // what cannot be discarded now is shown by `poll`
      throw error;
    }
  } catch (error) {
    failed = signal.aborted ? new Refused("Cancelled.") : error;
  }
  sending = null;
  $("teach-status").textContent = "";
  $("start").removeAttribute("aria-disabled");
  $("cancel-sending").hidden = true;
  await poll();
  if (failed) show($("job").hidden ? $("running-message") : $("teach-error"), failed);
  if (signal.aborted) $("start").focus();
};

async function send(role, path, file, signal) {
  const most = /\.zip$/i.test(path) ? bounds.upload_bytes : service.limits.upload_bytes;
  if (file.size > most) throw new Refused(`${path} has ${bytes(file.size)}: expected ${bytes(most)} at most.`);
  try {
    if (/\.zip$/i.test(path)) await ask(`/teach/zip?role=${role}`, { method: "POST", body: file, signal });
    else await ask(`/teach/files/${role}/${path.split("/").map(encodeURIComponent).join("/")}`, { method: "PUT", body: file, signal });
  } catch (error) {
    throw error instanceof Refused && !error.message.includes(path) ? new Refused(`${path}: ${error.message}`) : error;
  }
}

$("cancel-sending").onclick = () => sending?.abort();

function labelValues() {
  const values = list($("values").value);
  const odd = values.find(value => !/^\d+$/.test(value) || Number(value) > 255);
  if (odd !== undefined) throw new Refused(`The label value ${odd} is none: expected whole numbers from 0 to 255, such as 0, 255.`);
  return values.map(Number);
}

async function poll() {
  clearTimeout(polling);
  const before = job?.state;
  let said;
  try {
    said = await (await ask("/teach")).json();
  } catch (error) {
    if (before === "running") polling = setTimeout(poll, 1000);  // the service may come back
    return show($("job").hidden ? $("running-message") : $("teach-error"), error);
  }
  if (before === "done" && !said.job) emptyForm();
  job = said.job;
  bounds = said.limits;
  $("steps").max = bounds.steps;
  drawJob();
  if (job?.state === "running") polling = setTimeout(poll, 1000);
  if (job?.state === "done" && before === "running") await load().catch(error => show($("running-message"), error));
}

function emptyForm() {  // the next task has a name and images of its own
  $("name").value = $("classes").value = $("values").value = "";
  drawZones();
}

function drawJob() {
  const focused = $("teach").contains(document.activeElement) ? document.activeElement : null;
  drawState();
  if (focused && !focused.checkVisibility()) ($("running").hidden ? $("kinds").querySelector(":checked") : $("running-name")).focus();
}

function drawState() {
  const shown = job && !(job.state === "receiving" && sending);  // what this page sends itself is in its form
  $("job").hidden = Boolean(shown);
  $("running").hidden = !shown;
  if (!shown) return;
  const { name, state, step, steps, loss, left, counts } = job, receiving = state === "receiving";
  $("running-name").textContent = { receiving: `${name} waits for its images`, running: `Learns ${name}`, stopped: `${name} is stopped`, failed: `${name} could not be learned`, done: `${name} is learned` }[state];
  $("running-progress").max = steps;
  if (state === "running" && (step === 0 || step >= steps)) $("running-progress").removeAttribute("value");  // it starts or measures
  else $("running-progress").value = state === "done" ? steps : step;
  const facts = receiving ? { ...counts, "bytes in all": bytes(job.bytes) } : { step: `${state === "done" ? steps : step} of ${steps}`, loss: loss.length ? number(loss.at(-1)[1]) : "–", "time left": state !== "running" ? "–"
    : left == null ? "starts …" : step >= steps ? "measures …" : seconds(left), "time so far": seconds(job.seconds) };
  $("running-facts").replaceChildren(...Object.entries(facts).map(([term, value]) => make("div", {}, make("dt", { textContent: term }), make("dd", { textContent: value }))));
  drawCurve(loss, steps);
  $("preview").hidden = !job.preview;
  const source = `${API}/teach/preview?of=${job.preview}`;
  if (job.preview && !$("preview").firstChild.src.endsWith(source)) $("preview").firstChild.src = source;
  $("stop").hidden = state !== "running";
  $("running-progress").hidden = receiving;
  $("go-on").hidden = state === "running" || state === "done";
  $("use").hidden = $("task-file").hidden = state !== "done";
  $("discard").hidden = state === "running";  // one click must not delete hours of work
  $("discard").textContent = state === "done" ? "Teach another" : "Discard";
  show($("running-message"), job.message ? new Refused(sentence(job.message)) : null);
}

function drawCurve(rows, steps) {
  $("curve").hidden = rows.length < 2;
  if (rows.length < 2) return;
  const values = rows.map(([, loss]) => loss), low = Math.min(...values), high = Math.max(...values);
  const points = rows.map(([step, loss]) => `${(600 * step / steps).toFixed(1)},${(150 - 140 * (loss - low) / (high - low || 1)).toFixed(1)}`);
  $("curve").querySelector("polyline").setAttribute("points", points.join(" "));
  $("curve").querySelector("figcaption").textContent = `Loss by step: from ${number(values[0])} to ${number(values.at(-1))}`;
}

async function order(path, options) {
  try {
    await ask(path, options);
    await poll();
  } catch (error) {
    await poll();
    show($("running-message"), error);
  }
}
$("stop").onclick = () => order("/teach/stop", { method: "POST" });
$("go-on").onclick = () => order("/teach/start", { method: "POST" });
$("discard").onclick = () => order("/teach", { method: "DELETE" });
$("use").onclick = async () => {
  const name = job.name;
  try {
    await load(name);
  } catch (error) {
    return show($("running-message"), error);
  }
  open($("tab-images"));
  $("tab-images").focus();
  if (image) choose(name);
};

// ---------------------------------------------------------------- tabs

const tabs = [...document.querySelectorAll("[role=tab]")];
function open(tab) {
  for (const one of tabs) {
    const selected = one === tab;
    one.setAttribute("aria-selected", String(selected));
    one.tabIndex = selected ? 0 : -1;
    $(one.getAttribute("aria-controls")).hidden = !selected;
  }
  if (tab.id === "tab-masks") drawMasks();
  if (tab.id === "tab-teach") poll();
}
for (const tab of tabs) {
  tab.onclick = () => open(tab);
  tab.onkeydown = event => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const there = tabs.filter(one => !one.hidden);
    const next = there[(there.indexOf(tab) + step + there.length) % there.length];
    next.focus();
    open(next);
  };
}

try {
  await load();
  drawSamples();
  drawKinds();
  drawZones();
} catch (error) {
  show($("error"), error);
}
