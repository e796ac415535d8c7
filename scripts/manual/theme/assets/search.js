"use strict";

// Searches the sections in the index that MkDocs writes: every word must occur, and a title counts more than a text.
const LIMIT = 20;
const MOST_OF_A_WORD = 3;
const AROUND = 60;
const base = new URL(document.currentScript.dataset.base + "/", location);
const form = document.querySelector("form.search");
const input = document.getElementById("query");
const found = document.getElementById("found");
let sections;

async function load() {
  const response = await fetch(new URL("search/search_index.json", base));
  const index = await response.json();
  // The index has each page as a whole, too: its address has no anchor.
  const pages = new Map(index.docs.map((one) => [one.location, one.title]));
  return index.docs.filter((one) => one.location.includes("#")).map((section) => ({
    address: section.location,
    page: pages.get(section.location.split("#")[0]),
    title: section.title,
    text: section.text,
    inTitle: section.title.toLowerCase(),
    inText: section.text.toLowerCase(),
  }));
}

function count(text, word) {
  let times = 0;
  for (let at = text.indexOf(word); at >= 0 && times < MOST_OF_A_WORD; at = text.indexOf(word, at + word.length)) times += 1;
  return times;
}

function weigh(section, words) {
  let weight = 0;
  for (const word of words) {
    const titles = count(section.inTitle, word);
    const texts = count(section.inText, word);
    if (titles + texts === 0) return 0;
    weight += 20 * titles + texts;
  }
  return weight;
}

function excerpt(section, word) {
  const at = Math.max(0, section.inText.indexOf(word));
  const start = Math.max(0, at - AROUND);
  const text = section.text.slice(start, at + word.length + AROUND).replace(/\s+/g, " ");
  return (start > 0 ? "…" : "") + text + "…";
}

function show(words) {
  const hits = sections
    .map((section) => ({ section, weight: weigh(section, words) }))
    .filter((hit) => hit.weight > 0)
    .sort((one, other) => other.weight - one.weight);
  const summary = document.createElement("p");
  summary.className = "quiet";
  summary.textContent = hits.length === 0 ? "No section has all of these words." : `Sections: ${hits.length}`;
  found.replaceChildren(summary, ...hits.slice(0, LIMIT).map(({ section }) => {
    const link = document.createElement("a");
    const title = document.createElement("b");
    const text = document.createElement("span");
    link.href = new URL(section.address, base);
    title.textContent = section.page === section.title ? section.title : `${section.page}: ${section.title}`;
    text.textContent = excerpt(section, words[0]);
    link.append(title, text);
    return link;
  }));
  found.hidden = false;
}

async function search() {
  const words = input.value.toLowerCase().split(/\s+/).filter((word) => word.length > 1);
  if (words.length === 0) {
    found.hidden = true;
    return;
  }
  sections = sections ?? await load();
  show(words);
}

// A browser that opened the page as a file lets no script read the index.
form.hidden = location.protocol === "file:";
input.addEventListener("input", search);
form.addEventListener("submit", (event) => {
  event.preventDefault();
  found.querySelector("a")?.click();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") found.hidden = true;
  if (event.key === "/" && document.activeElement === document.body) {
    event.preventDefault();
    input.focus();
  }
});
document.addEventListener("click", (event) => {
  if (!form.contains(event.target)) found.hidden = true;
});
