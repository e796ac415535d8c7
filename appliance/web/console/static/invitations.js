// Invitations. The secret of an address is made in the administrator's tab, whose form sends its digest alone. The page
// after signing shows the address once. In the invited person's tab the secret goes into the body of each form.

const OWN = "invitation";
const keyOf = (digest) => `invitation:${digest}`;

const toHex = (data) => [...new Uint8Array(data)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
const toBase64url = (data) => btoa(String.fromCharCode(...data)).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");

/** A new secret, kept in this tab under its digest, which is put into the form. */
async function makeSecret(field) {
  if (field.value && sessionStorage.getItem(keyOf(field.value))) return;
  const secret = crypto.getRandomValues(new Uint8Array(32));
  const digest = `sha256:${toHex(await crypto.subtle.digest("SHA-256", secret))}`;
  sessionStorage.setItem(keyOf(digest), toBase64url(secret));
  field.value = digest;
}

/** A QR code as one path; it has a quiet border of four modules (ISO/IEC 18004). */
function draw(place, rows, label) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg"), path = document.createElementNS(svg.namespaceURI, "path");
  svg.setAttribute("viewBox", `0 0 ${rows.length} ${rows.length}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", label);
  svg.setAttribute("shape-rendering", "crispEdges");
  path.setAttribute("d", rows.flatMap((row, y) => row.map((dark, x) => (dark ? `M${x} ${y}h1v1h-1z` : ""))).join(""));
  svg.append(path);
  place.replaceChildren(svg);
}

/** Shows the address of a signed invitation, and removes its secret from this tab. */
async function showAddress(section) {
  const key = keyOf(section.dataset.invitation), secret = sessionStorage.getItem(key);
  if (!secret) return;
  const address = `${location.origin}/invitation#${secret}`;
  const { encode } = await import(section.dataset.encoder);
  draw(section.querySelector("[data-code]"), encode(address, { ecc: "M", border: 4 }).data, "QR code of the address");
  section.querySelector("[data-address]").textContent = address;
  section.querySelector("[data-shown]").hidden = false;
  section.querySelector("[data-gone]").hidden = true;
  sessionStorage.removeItem(key);
  section.querySelector("[data-print]").addEventListener("click", () => print());
}

/** Takes the secret out of the address bar and sends it in the body of a form. */
function openInvitation(form) {
  const given = location.hash.slice(1);
  if (given) {
    history.replaceState(null, "", location.pathname);
    sessionStorage.setItem(OWN, given);
  }
  const secret = sessionStorage.getItem(OWN);
  if (!secret) return;
  form.elements.secret.value = secret;
  form.querySelector("button").hidden = false;
  document.querySelector("[data-without]").hidden = true;
  if (given) form.submit();
}

document.querySelectorAll("[data-new-secret]").forEach(makeSecret);
document.querySelectorAll("[data-invitation]").forEach(showAddress);
document.querySelectorAll("[data-opening]").forEach(openInvitation);
if (document.querySelector("[data-invitation-over]")) sessionStorage.removeItem(OWN);
for (const field of document.querySelectorAll("[data-secret]")) field.value ||= sessionStorage.getItem(OWN) ?? "";
// The address of another invitation, opened in this tab.
addEventListener("hashchange", () => document.querySelectorAll("[data-opening]").forEach(openInvitation));
