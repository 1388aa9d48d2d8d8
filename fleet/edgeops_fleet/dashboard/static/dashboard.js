// Replaces the page's content with the server's every two seconds; what is open stays open, and silence is said.
"use strict";

const content = document.getElementById("content");
const stale = document.getElementById("stale");
const PERIOD_MS = 2000;
let shown = null;
let received = new Date();

function openKeys() {
  return new Set(Array.from(content.querySelectorAll("details[open]"), (element) => element.dataset.key));
}

function show(html) {
  if (html === shown) return;
  const open = openKeys();
  content.innerHTML = html;
  shown = html;
  for (const element of content.querySelectorAll("details")) {
    element.open = open.has(element.dataset.key);
  }
}

async function refresh() {
  try {
    const answer = await fetch("fragment", { cache: "no-store" });
    if (!answer.ok) throw new Error(String(answer.status));
    const html = await answer.text();
    // A selection would be lost with the text that it is in.
    if (getSelection().isCollapsed) show(html);
    received = new Date();
    stale.hidden = true;
  } catch {
    document.getElementById("stale-since").textContent = received.toLocaleTimeString();
    stale.hidden = false;
  }
}

async function run() {
  if (!document.hidden) await refresh();
  setTimeout(run, PERIOD_MS);
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) refresh();
});
setTimeout(run, PERIOD_MS);
