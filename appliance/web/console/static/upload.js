// Files that a form asks for. A file of rows is hashed here before it is sent: what is signed is the digest that this
// browser computed. WebCrypto has no digest of a stream, so the file is read whole into memory, which is why it is
// 200 MB at most. A document is read into the text field above it.

const form = document.querySelector("form.order"), place = form.querySelector("[data-progress]");
// A field may be named "dataset" and would hide the attribute of this name.
const most = Number(form.getAttribute("data-uploads"));

const toHex = (data) => [...new Uint8Array(data)].map((byte) => byte.toString(16).padStart(2, "0")).join("");

function say(text) {
  place.textContent = text;
  place.hidden = false;
}

async function send(input) {
  const file = input.files[0];
  if (file.size > most) throw new Error(`${file.name} has ${file.size} bytes, and ${most} are the most here. Import it on the command line.`);
  say(`Hashing ${file.name}.`);
  const data = await file.arrayBuffer();
  const digest = `sha256:${toHex(await crypto.subtle.digest("SHA-256", data))}`;
  say(`Sending ${file.name}.`);
  const answer = await fetch(`/uploads/${digest}`, {
    method: "PUT", body: data, headers: { "X-CSRF-Token": form.elements.csrf.value } });
  if (!answer.ok) throw new Error((await answer.json()).error.message);
  form.elements[input.dataset.upload].value = digest;
  // The signing page of this tab compares what is signed with what was hashed.
  sessionStorage.setItem(`hashed:${digest}`, `${file.name}, ${file.size} bytes`);
}

for (const input of document.querySelectorAll("input[data-into]")) {
  input.addEventListener("change", async () => {
    if (input.files.length) document.getElementById(input.dataset.into).value = await input.files[0].text();
  });
}

if (most) form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector("button[type=submit]");
  button.disabled = true;
  try {
    for (const input of form.querySelectorAll("input[data-upload]")) if (input.files.length) await send(input);
    say("The file was sent.");
    form.submit();
  } catch (error) {
    say(`Nothing was sent. ${error.message}`);
    button.disabled = false;
  }
});
