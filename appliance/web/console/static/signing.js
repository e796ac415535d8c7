// What you sign, shown from the bytes that are signed, and the passkey that signs them.
//
// A page puts a file into the form's field "file": {"statement": base64, "disclosures": [...], "documents": {...},
// "reported": [...]}. Everything that is shown, hashed and signed comes from that statement's bytes. The page says beside
// it only in which order and by which labels to show the members, and what the action means. `appliance order check` shows the same lines.

const PAYLOAD_TYPE = "application/vnd.in-toto+json";
const HEADER = ["origin", "signer", "nonce", "issued_at", "expires_at"];
const GATE_KINDS = { regression: "regression check", target: "target metric" };
const CLAIMS = { better: "better than", "no-worse": "no worse than", equivalent: "equivalent to" };
// The mark of a value that the service states without a proof; the command line has the same.
const REPORTED = "  (as the service reports)";
const utf8 = new TextEncoder();

const fromBase64 = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const fromBase64url = (text) => fromBase64(text.replace(/-/g, "+").replace(/_/g, "/"));
const toBase64url = (data) =>
  btoa(String.fromCharCode(...new Uint8Array(data))).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
const toHex = (data) => [...new Uint8Array(data)].map((byte) => byte.toString(16).padStart(2, "0")).join("");

/** The first 60 bits of a digest in base32 (RFC 4648), in groups of four. */
export function shortCode(digest) {
  let bits = 0n;
  for (const digit of digest.slice("sha256:".length, "sha256:".length + 15)) bits = (bits << 4n) | BigInt(`0x${digit}`);
  const code = Array.from({ length: 12 }, (_, place) => "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"[Number((bits >> BigInt(55 - 5 * place)) & 31n)]);
  return code.join("").replace(/(....)(?=.)/g, "$1-");
}

export const digest = async (data) => `sha256:${toHex(await crypto.subtle.digest("SHA-256", data))}`;

/** DSSE's pre-authentication encoding: what every signature is over. */
export function pae(payload) {
  const head = utf8.encode(`DSSEv1 ${PAYLOAD_TYPE.length} ${PAYLOAD_TYPE} ${payload.length} `);
  const whole = new Uint8Array(head.length + payload.length);
  whole.set(head);
  whole.set(payload, head.length);
  return whole;
}

/** The file's statement, its texts opened and its documents compared: an Error says what is not as it binds. */
export async function open(text) {
  const file = JSON.parse(text);
  const bytes = fromBase64(file.statement);
  const statement = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  const texts = new Map();
  for (const one of file.disclosures) {
    const key = await crypto.subtle.importKey(
      "raw", fromBase64(one.salt), { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
    const found = `hmac-sha256:${toHex(await crypto.subtle.sign("HMAC", key, utf8.encode(one.text)))}`;
    if (found !== one.commitment) throw new Error(`A text is not the one that the statement binds: ${one.commitment}`);
    texts.set(found, one.text);
  }
  const documents = new Map();
  for (const [role, data] of Object.entries(file.documents)) {
    const content = fromBase64(data), bound = statement.predicate[role];
    const signed = role === "possession" ? pae(fromBase64(JSON.parse(new TextDecoder().decode(content)).payload)) : content;
    // Of people who are enrolled together each proof is bound by its own person; the service's rules compare them.
    if (role !== "possessions" && (await digest(signed)) !== bound) throw new Error(`The document ${role} is not the one that the statement binds.`);
    documents.set(role, content);
  }
  return { bytes, statement, texts, documents, reported: file.reported };
}

/** What kind of statement it is, such as "order:review". */
export const kindOf = (opened) => opened.statement.predicateType.replace(/^urn:appliance:/, "").replace(/:v1$/, "");

/** Every value that the signature binds, as [label, text]. `members`: by the name of an object ("" is the statement)
 * the order of its fields; one that is not listed comes last and is never left out. `labels`: by the name of a field
 * its label, if its own name is not clear enough. */
export async function describe(opened, { members, labels }) {
  const label = (name) => (Object.hasOwn(labels, name) ? labels[name] : name.replaceAll("_", " "));
  const { predicate } = opened.statement, kind = kindOf(opened);
  const lines = [["action", kind.replace(/^order:/, "")], ["signer", predicate.signer], ["log", predicate.origin]];
  for (const [name, value] of ordered(predicate, members[""])) {
    if (name === "gates") lines.push(...(await describeGates(opened)));
    else if (HEADER.includes(name) || value === null) continue;
    else if (name === "commitment") {
      lines.push([name, value], ["text", opened.texts.get(value) ?? "not disclosed: what would be erased cannot be shown"]);
    } else if (name === "people") {
      for (const person of value) {
        for (const [part, item] of ordered(person, members.people)) {
          if (part !== "principal") lines.push([`${person.principal}, ${label(part)}`, show(textOf(opened, item), members, label)]);
        }
      }
    } else if (name === "recipe") {
      for (const [part, item] of ordered(value, members.recipe)) {
        lines.push([label(part), show(item, members, label) + (opened.reported.includes(`recipe.${part}`) ? "  (auto)" : "")]);
      }
    } else if (Array.isArray(value) && value.some((item) => opened.texts.has(item))) {
      lines.push(...value.map((item, index) => [`${label(name)}, ${index + 1}`, textOf(opened, item)]));
    } else {
      lines.push([label(name), show(textOf(opened, value), members, label, name) + (opened.reported.includes(name) ? REPORTED : "")]);
    }
    if (name === "keyid") lines.push(["short code", shortCode(value)]);
  }
  if (predicate.expires_at) lines.push(["expires", predicate.expires_at]);
  return [...lines, ["statement", await digest(opened.bytes)]];
}

function ordered(object, names = []) {
  const rest = Object.keys(object).filter((name) => !names.includes(name));
  return [...names.filter((name) => Object.hasOwn(object, name)), ...rest].map((name) => [name, object[name]]);
}

const textOf = (opened, value) => (typeof value === "string" ? opened.texts.get(value) ?? value : value);

/** Characters that have no shape of their own are written out, as the command line does: no text of another person
 * turns its own direction round, or hides a part of itself, above a signature. */
export const plain = (text) =>
  text.replace(/[\p{C}\p{Zl}\p{Zp}\p{DI}]/gu, (c) => `\\u{${c.codePointAt(0).toString(16).padStart(4, "0")}}`);

const isSet = (value) => value !== null && !(Array.isArray(value) && !value.length);

/** A value as text. Parts of an object that are null or empty are left out. */
function show(value, members, label, name) {
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (value === null) return "none";
  if (Array.isArray(value)) return value.map((item) => show(item, members, label, name)).join(", ") || "none";
  if (typeof value === "object") {
    const parts = ordered(value, members[name]).filter(([, item]) => isSet(item));
    return parts.map(([key, item]) => `${label(key)} = ${show(item, members, label)}`).join(", ") || "none";
  }
  return String(value);
}

async function describeGates(opened) {
  const data = opened.documents.get("gates"), bound = opened.statement.predicate.gates;
  if (bound === null) return [["gates", "none: no gate decides on this adapter"]];
  if (!data) return [["gates", `not disclosed: what ${bound} decides cannot be shown`]];
  const set = JSON.parse(new TextDecoder().decode(data));
  const rules = `alpha ${set.alpha}, correction ${set.correction}, run correction ${set.run_correction}, seed ${set.seed}`;
  const lines = set.gates.map((gate) => [`gate ${gate.name}`, `${GATE_KINDS[gate.kind]}: ${describeGate(gate)}`]);
  return [["gates", `${set.name}, ${await digest(data)}`], ["gates, rules", rules], ...lines];
}

function describeGate(gate) {
  const margin = Number(gate.margin) ? ` by the margin ${gate.margin}` : "";
  const asked = `${gate.metric} on ${gate.set} is ${CLAIMS[gate.claim]} ${gate.comparison}${margin}, by the test ${gate.test}, with at least ${gate.least_items} rows`;
  const slices = gate.slices.length ? `; no ${gate.slices.join(" or ")} is worse` : "";
  return asked + slices + (gate.chance === null ? "" : `; not informative where it is at chance (${gate.chance})`);
}

/** The passkey's answer to exactly these bytes, as the fields of a form. */
async function assert(opened, { rpId, allowed }) {
  const challenge = await crypto.subtle.digest("SHA-256", pae(opened.bytes));
  const allowCredentials = allowed.map((id) => ({ type: "public-key", id: fromBase64url(id) }));
  const found = await navigator.credentials.get({
    publicKey: { challenge, rpId, allowCredentials, userVerification: "required", timeout: 120000 },
  });
  return {
    credential_id: toBase64url(found.rawId),
    authenticator_data: toBase64url(found.response.authenticatorData),
    client_data: toBase64url(found.response.clientDataJSON),
    signature: toBase64url(found.response.signature),
  };
}

/** The passkey's answer, put into the form's fields. */
export async function sign(opened, form, data) {
  for (const [name, value] of Object.entries(await assert(opened, data))) form.elements[name].value = value;
}

/** A new passkey, whose authenticator's own words are put into the form. */
export async function create(form, { rpId, signer, known }) {
  const made = await navigator.credentials.create({
    publicKey: {
      rp: { id: rpId, name: "appliance" },
      // Random: a second passkey of a person must not take the first one's place in an authenticator.
      user: { id: crypto.getRandomValues(new Uint8Array(32)), name: signer, displayName: signer },
      challenge: crypto.getRandomValues(new Uint8Array(32)),
      pubKeyCredParams: [{ type: "public-key", alg: -7 }],
      authenticatorSelection: { residentKey: "required", userVerification: "required" },
      excludeCredentials: known.map((id) => ({ type: "public-key", id: fromBase64url(id) })),
      attestation: "none",
      timeout: 120000,
    },
  });
  form.elements.data.value = toBase64url(made.response.getAuthenticatorData());
}

function draw(list, lines) {
  for (const [name, text] of lines) {
    const row = document.createElement("div"), term = document.createElement("dt"), said = document.createElement("dd");
    term.textContent = plain(name);
    said.textContent = text.split("\n").map(plain).join("\n");
    row.append(term, said);
    list.append(row);
  }
}

// Lines that most people do not decide by; they are shown below the others.
const TECHNICAL = ["action", "signer", "log", "expires", "statement", "key", "credential id", "opened"];
// A key id is compared with its holder, so it is never folded.
const isTechnical = ([name, text], unchanged) => !name.endsWith("key id") && (
  TECHNICAL.includes(name) || unchanged.includes(name) || text === "none" || text.endsWith("  (auto)") || /^(hmac-)?sha256:[0-9a-f]{64}$/.test(text));

/** Every line of a statement: the ones to decide by, and in the folded part the technical ones and those with the
 * labels `unchanged`, which the person left as they were. */
function drawAll(section, lines, unchanged = []) {
  draw(section.querySelector("[data-lines]"), lines.filter((line) => !isTechnical(line, unchanged)));
  draw(section.querySelector("[data-technical]"), lines.filter((line) => isTechnical(line, unchanged)));
  section.querySelector("[data-unread]").hidden = true;
}

function say(place, text, help, words = "What to do") {
  place.textContent = text;
  if (help) {
    const link = document.createElement("a");
    link.href = help;
    link.textContent = words;
    place.append(" ", link);
  }
  place.hidden = false;
}

const REASONS = {
  NotAllowedError: "The authenticator was not used in time, was cancelled, or has no passkey for this address.",
  InvalidStateError: "This authenticator has a passkey for you at this address already.",
  SecurityError: "The browser allows no passkey at this address.",
  NotSupportedError: "This authenticator cannot make a passkey of the kind that is needed.",
  AbortError: "The request was cancelled.",
};

/** Shows why a passkey did not sign, in our own words, with a link to the console's own help. */
function explain(place, what, error) {
  const isPasskeys = Object.hasOwn(REASONS, error.name);
  if (error.elsewhere) {
    say(place, `${what} ${error.message} Then come back to this page.`, error.elsewhere, "Sign in in another tab");
    place.lastChild.target = "_blank";
    return;
  }
  say(place, `${what} ${isPasskeys ? REASONS[error.name] : error.message}`, isPasskeys || error.isRefusal ? "/help/passkeys" : "");
}

// --- sessions ------------------------------------------------------------------------------------------------------

async function ask(address, options) {
  const answer = await fetch(address, { cache: "no-store", ...options });
  const said = await answer.json();
  if (answer.ok) return said;
  const remedies = (said.error.refusals ?? []).map((one) => one.remedy);
  const error = new Error([said.error.message, ...remedies].join(" "));
  error.status = answer.status;
  error.code = said.error.code;
  error.isRefusal = true;
  throw error;
}

/** Signs in with a passkey, without leaving the page unless policy requires an ID token. Then the identity provider opens
 * in place of the page and sends a token that names the signed statement, which this tab keeps. Afterwards `target` opens;
 * a page that must stay has none. */
async function signIn(name, target) {
  const made = await ask(`/sign-in/passkey.json?name=${encodeURIComponent(name)}`);
  const data = JSON.parse(made.script_data), opened = await open(made.file);
  if (!kindOf(opened).startsWith(data.kind)) throw new Error(`Expected a statement of the kind ${data.kind}, got ${kindOf(opened)}.`);
  if (opened.statement.predicate.signer !== name) throw new Error(`Expected a statement of ${name}, got one of another.`);
  const fields = { file: made.file, ...(await assert(opened, data)) };
  try {
    return await openSession(fields);
  } catch (error) {
    if (error.code !== "identity-required" || !made.identity) throw error;
    if (target === undefined) throw Object.assign(error, { elsewhere: "/sign-in" });
    sessionStorage.setItem(BEGUN, JSON.stringify({ nonce: await digest(pae(opened.bytes)), fields, target }));
    location.assign(made.identity);
    return new Promise(() => {});
  }
}

const BEGUN = "sign-in";
const openSession = (fields) => ask("/sign-in/passkey.json", { method: "POST", body: new URLSearchParams(fields) });

/** The nonce of an ID token, which the service verifies. */
export function nonceOf(token) {
  try {
    return JSON.parse(new TextDecoder().decode(fromBase64url(token.split(".")[1]))).nonce;
  } catch {
    return undefined;
  }
}

/** Opens the session of the statement that this tab signed, if the ID token names it. The page shows others as a text. */
async function finishSignIn(section) {
  const begun = JSON.parse(sessionStorage.getItem(BEGUN)), identity_token = section.dataset.identityToken;
  if (!begun || begun.nonce !== nonceOf(identity_token)) return;
  sessionStorage.removeItem(BEGUN);
  section.querySelector("[data-command]").hidden = true;
  section.querySelector("[data-browser]").hidden = false;
  try {
    await openSession({ ...begun.fields, identity_token });
    location.replace(begun.target);
  } catch (error) {
    say(section.querySelector("[data-problem]"), `You are not signed in. ${error.message}`);
  }
}

const LEAST_S = 15;

/** Makes sure that this browser has a session of the page's person; asks for the passkey on the spot if not. */
async function ensureSession() {
  const dialog = document.querySelector("[data-ended]");
  if (!dialog) return;
  const name = dialog.querySelector("[data-sign-in]").dataset.signIn;
  for (;;) {
    try {
      const session = await ask("/session.json");
      if (session.viewer !== name) throw new Error(`This browser is signed in as ${session.viewer} now. The form is one of ${name}.`);
      if (session.left_s > LEAST_S) {
        for (const field of document.querySelectorAll("input[name=csrf]")) field.value = session.csrf;
        return;
      }
    } catch (error) {
      if (error.status !== 401) throw error;
    }
    await new Promise((resolve, reject) => {
      dialog.addEventListener("close", () => (dialog.returnValue === "done" ? resolve() : reject(new Error("You are not signed in."))), { once: true });
      dialog.returnValue = "";
      dialog.showModal();
    });
  }
}

/** The buttons that sign in: in the dialog of a session that has ended, and on the page of signing in. */
function startSignIn(button) {
  const dialog = button.closest("dialog"), place = button.closest("[data-signing-in], dialog");
  const problem = place.querySelector("[data-problem]"), field = place.querySelector("input[name=name]");
  const start = async (event) => {
    event.preventDefault();
    if (field && !field.reportValidity()) return;
    button.disabled = true;
    try {
      const target = place.dataset.signingIn || location.pathname + location.search;
      await signIn(field ? field.value.trim() : button.dataset.signIn, dialog ? undefined : target);
      if (dialog) dialog.close("done");
      // The page that was asked for takes the place of this one, so that Back does not come here again.
      else if (place.dataset.signingIn) location.replace(place.dataset.signingIn);
      else location.reload();
    } catch (error) {
      explain(problem, "You are not signed in.", error);
    }
    button.disabled = false;
  };
  if (field) field.form.addEventListener("submit", start);
  else button.addEventListener("click", start);
  button.disabled = false;
  if (dialog) {
    dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
    // Somebody who signed in by a link in another tab comes back to this one.
    addEventListener("focus", async () => {
      if (dialog.open && (await ask("/session.json").catch(() => null))) dialog.close("done");
    });
  }
}

/** A form that is sent when the session is sure to last, so that no text is lost. */
function guard(form) {
  let isSure = false;
  form.addEventListener("submit", async (event) => {
    if (isSure) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    try {
      await ensureSession();
      isSure = true;
      form.requestSubmit(event.submitter);
      isSure = false;
    } catch {
      // The form stays as it is; the dialog said why.
    }
  }, { capture: true });
}

// --- signing -------------------------------------------------------------------------------------------------------

async function startSigning(section) {
  const form = section.querySelector("form"), button = form.querySelector("[data-sign]"), problem = section.querySelector("[data-problem]");
  const data = JSON.parse(section.dataset.signing);
  try {
    const opened = await open(form.elements.file.value);
    if (!kindOf(opened).startsWith(data.kind)) throw new Error(`Expected a statement of the kind ${data.kind}, got ${kindOf(opened)}.`);
    if (data.signer !== opened.statement.predicate.signer) throw new Error(`Expected a statement of ${data.signer}, got one of ${opened.statement.predicate.signer}.`);
    const countersigned = section.querySelector("[data-countersigned]");
    if (countersigned) {
      const other = await open(countersigned.dataset.countersigned);
      if ((await digest(pae(other.bytes))) !== opened.statement.predicate.order) throw new Error("The order above is not the one that you countersign.");
      drawAll(countersigned, await describe(other, JSON.parse(countersigned.dataset.fields)));
    }
    drawAll(form.closest("section"), [...(await describe(opened, data.fields)), ...hashedHere(opened)], data.unchanged);
    section.querySelector("[data-identity]").textContent = await digest(pae(opened.bytes));
    button.disabled = !data.allowed.length && data.kind === "order:";
    button.addEventListener("click", async () => {
      button.disabled = true;
      problem.hidden = true;
      try {
        await ensureSession();
        await sign(opened, form, data);
        form.submit();
        // A file is saved, and the page stays.
        const done = section.querySelector("[data-done]");
        if (done) done.hidden = false;
      } catch (error) {
        explain(problem, "Nothing was signed.", error);
        button.disabled = false;
      }
    });
    const save = section.querySelector("[data-save]");
    if (save) save.href = URL.createObjectURL(new Blob([form.elements.file.value + "\n"], { type: "application/json" }));
  } catch (error) {
    say(problem, error.message);
  }
}

/** Of files of rows: what this tab hashed (upload.js). A digest that it did not compute is not signed. */
export function hashedHere(opened) {
  const { file, held_out } = opened.statement.predicate;
  if (!kindOf(opened).startsWith("order:import-")) return [];
  return [file, held_out].filter((one) => String(one).startsWith("sha256:")).map((digest) => {
    const hashed = sessionStorage.getItem(`hashed:${digest}`);
    if (!hashed) throw new Error(`This tab did not hash the file ${digest}. Begin again with the form.`);
    return ["hashed in this tab", `${hashed}: ${digest}`];
  });
}

function startCreating(section) {
  const form = section.querySelector("form"), problem = section.querySelector("[data-problem]");
  form.querySelector("[data-create]").addEventListener("click", async () => {
    if (!form.reportValidity()) return;
    try {
      await create(form, JSON.parse(section.dataset.creating));
      form.submit();
    } catch (error) {
      explain(problem, "No passkey was made.", error);
    }
  });
}

if (typeof document !== "undefined") {
  document.querySelectorAll("[data-signing]").forEach(startSigning);
  document.querySelectorAll("[data-creating]").forEach(startCreating);
  document.querySelectorAll("[data-sign-in]").forEach(startSignIn);
  document.querySelectorAll("[data-identity-token]").forEach(finishSignIn);
  document.querySelectorAll("form[data-guarded]").forEach(guard);
  document.querySelector("#problems")?.focus();
  // A page that the browser kept may have been signed since.
  addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
}
