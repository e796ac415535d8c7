// A file of rows, hashed here before it is sent: what is signed is the digest that this browser computed. WebCrypto
// has no digest of a stream, so the file is read whole into memory, which is why it is 200 MB at most.

const form = document.querySelector("form[data-uploads]"), place = form.querySelector("[data-progress]");
const most = Number(form.dataset.uploads);

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

form.addEventListener("submit", async (event) => {
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
