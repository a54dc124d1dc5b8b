// Makes the page live: whenever the server says that something has changed, it asks for the page again and takes in
// what differs. A hidden page lets its stream go, as a browser has six connections to a server for all its tabs.
const body = document.body;
const parse = (text) => new DOMParser().parseFromString(text, "text/html");
let stream, busy = false, again = false, seen = body.dataset.version;

function localTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    const today = at.toDateString() === new Date().toDateString();
    const day = { month: "short", day: "numeric", ...(at.getFullYear() === new Date().getFullYear() ? {} : { year: "numeric" }) };
    time.textContent = at.toLocaleString([], { ...(today ? {} : day), hour: "2-digit", minute: "2-digit" });
  }
}

// At the top of the first page new orders are taken in; elsewhere the rows stay under the reader, and are only counted.
function reading(list) {
  const counted = list.dataset.held && document.querySelector("#newer a");
  return Boolean(list.dataset.top) && Boolean(counted || scrollY > 40 || list.contains(document.activeElement));
}

function address() {
  if (body.dataset.source !== "/") return body.dataset.source;
  const list = document.getElementById("list");
  const url = new URL(location.href);
  url.searchParams.delete("placed");
  if (list.dataset.first) { // the address of a later page has it
    list.dataset.held = reading(list) ? "yes" : "";
    if (list.dataset.held) url.searchParams.set("top", list.dataset.top);
  }
  return url;
}

function takeIn(page) {
  for (const fresh of page.querySelectorAll("[data-live]")) {
    const old = document.getElementById(fresh.id);
    if (!old || (fresh.id === "list" && takeInRows(old, fresh))) continue;
    swap(old, fresh);
  }
}

function swap(old, fresh) {
  localTimes(fresh);
  for (const details of old.querySelectorAll("details[open]")) fresh.querySelector(`#${details.id}`)?.setAttribute("open", "");
  if (old.isEqualNode(fresh)) return;
  const focused = old.contains(document.activeElement);
  const id = document.activeElement?.id;
  if (fresh.id === "list") fresh.dataset.held = old.dataset.held || "";
  const node = document.importNode(fresh, true);
  old.replaceWith(node);
  if (focused) (document.getElementById(id) || (node.tabIndex < 0 ? node : document.getElementById("main"))).focus({ preventScroll: true });
}

// Rows that stay keep their place and their focus; returns whether there was a table to take them in.
function takeInRows(old, fresh) {
  const [to, from] = [old.querySelector("tbody"), fresh.querySelector("tbody")];
  if (!to || !from) return false;
  localTimes(from);
  const wanted = new Set([...from.rows].map((row) => row.id));
  for (const row of [...to.rows]) if (!wanted.has(row.id)) row.remove();
  let place = to.firstElementChild;
  for (const row of from.rows) {
    const mine = document.getElementById(row.id) || arrived(row);
    for (const [n, cell] of [...row.cells].entries()) {
      if (!mine.cells[n].isEqualNode(cell)) mine.cells[n].replaceWith(document.importNode(cell, true));
    }
    if (mine === place) place = place.nextElementSibling;
    else to.insertBefore(mine, place);
  }
  old.dataset.first = fresh.dataset.first;
  if (!old.dataset.held) old.dataset.top = fresh.dataset.top;
  return true;
}

function arrived(row) {
  const node = document.importNode(row, true);
  node.classList.add("fresh");
  setTimeout(() => node.classList.remove("fresh"), 1500);
  return node;
}

async function refresh() {
  if (busy) { again = true; return; }
  busy = true;
  try {
    do {
      again = false;
      const answer = await fetch(address(), { headers: { Accept: "text/html" } });
      if (new URL(answer.url).pathname === "/login") { location.assign(answer.url); return; } // the session is over
      if (!answer.headers.get("content-type")?.startsWith("text/html")) throw new Error(answer.status);
      const page = parse(await answer.text());
      seen = page.body.dataset.version || seen;
      takeIn(page);
      await new Promise((done) => setTimeout(done, 250));
    } while (again && !document.hidden);
  } catch {
    say("Not connected, trying again");
  } finally {
    busy = false;
  }
}

function say(text) {
  const at = document.getElementById("stream");
  if (at.textContent !== text) at.textContent = text;
}

function listen() {
  stream?.close();
  stream = undefined;
  if (document.hidden) return;
  stream = new EventSource("/api/events");
  let first = true, lost = false;
  stream.addEventListener("change", (event) => {
    if (!first || event.lastEventId !== seen) refresh();
    first = false;
  });
  stream.onopen = () => {
    say("Live");
    if (lost) refresh(); // what went wrong meanwhile may have changed, though no order has
    lost = false;
  };
  stream.onerror = () => {
    say("Not connected, trying again");
    lost = true;
    if (stream.readyState === EventSource.CLOSED) setTimeout(() => { listen(); refresh(); }, 3000); // it was refused
  };
}

// Forms: the answer's part of the page takes the place of the form's.
document.addEventListener("submit", async (event) => {
  const form = event.target;
  const part = form.dataset.swap;
  if (!part) return;
  event.preventDefault();
  const fields = new URLSearchParams(new FormData(form, event.submitter));
  const buttons = [...form.querySelectorAll("button")];
  for (const button of buttons) button.disabled = true;
  try {
    const answer = await fetch(form.action, { method: "POST", body: fields, headers: { Accept: "text/html" } });
    const fresh = parse(await answer.text()).getElementById(part);
    if (!fresh) { location.assign(answer.url); return; }
    localTimes(fresh);
    const node = document.importNode(fresh, true);
    document.getElementById(part).replaceWith(node);
    const to = node.querySelector("[aria-invalid]") || (part === "place" ? node.querySelector("input:not([type=hidden])") : node);
    to?.focus({ preventScroll: part !== "place" });
    refresh();
  } catch {
    for (const button of buttons) button.disabled = false;
    say("Not sent: the server does not answer. Try again");
  }
});

// The search takes times in the reader's zone; the server gets them in UTC.
for (const input of document.querySelectorAll("input[type=datetime-local]")) {
  const local = (at) => new Date(at - at.getTimezoneOffset() * 60000).toISOString().slice(0, 16);
  if (input.value) input.value = local(new Date(input.value + "Z"));
  input.closest(".field").querySelector(".zone").textContent = "(your time)";
}
document.querySelector("form.search")?.addEventListener("formdata", (event) => {
  for (const name of ["since", "until"]) {
    const value = event.formData.get(name);
    if (value) event.formData.set(name, new Date(value).toISOString().slice(0, 16));
  }
  for (const [name, value] of [...event.formData]) if (!value) event.formData.delete(name);
});

localTimes(document);
document.addEventListener("visibilitychange", () => { listen(); if (!document.hidden) refresh(); });
addEventListener("pagehide", () => stream?.close());
addEventListener("pageshow", (event) => { if (event.persisted) { listen(); refresh(); } });
listen();
