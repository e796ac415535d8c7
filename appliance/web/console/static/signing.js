// What you sign, shown from the bytes that are signed, and the passkey that signs them.
//
// A page puts a file into the form's field "file": {"statement": base64, "disclosures": [...], "documents": {...},
// "resolved": [...]}. Everything that is shown, hashed and signed comes from that statement's bytes. The page says beside
// it only in which order to show the members, and what the verb means. `appliance order check` shows the same lines.

const PAYLOAD_TYPE = "application/vnd.in-toto+json";
const HEADER = ["origin", "signer", "nonce", "issued_at", "expires_at"];
const CLAIMS = { better: "better than", "no-worse": "no worse than", equivalent: "equivalent to" };
// Of members whose own name says too little; the command line has the same (domain/rulebook/showing.py).
const LABELS = {
  "backup_eligible": "can be copied to a cloud",
  "credential_id": "credential id",
  "expires_at": "expires",
  "issued_at": "made",
  "keyid": "key id",
  "on": "trains on",
  "origins": "signs at",
  "passkey": "name of the passkey",
  "rp_id": "host"
};
const utf8 = new TextEncoder();

const fromBase64 = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const fromBase64url = (text) => fromBase64(text.replace(/-/g, "+").replace(/_/g, "/"));
const toBase64url = (data) =>
  btoa(String.fromCharCode(...new Uint8Array(data))).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
const toHex = (data) => [...new Uint8Array(data)].map((byte) => byte.toString(16).padStart(2, "0")).join("");

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
  return { bytes, statement, texts, documents, resolved: file.resolved };
}

/** What kind of statement it is, such as "order:review". */
export const kindOf = (opened) => opened.statement.predicateType.replace(/^urn:appliance:/, "").replace(/:v1$/, "");

/** Every value that the signature binds, as [label, text]. `members`: by the name of an object ("" is the statement)
 * the order of its members; one that is not listed comes last and is never left out. */
export async function describe(opened, members) {
  const { predicate } = opened.statement, kind = kindOf(opened);
  const lines = [["verb", kind.replace(/^order:/, "")], ["signer", predicate.signer], ["log", predicate.origin]];
  for (const [name, value] of ordered(predicate, members[""])) {
    if (name === "gates") lines.push(...(await describeGates(opened)));
    else if (HEADER.includes(name) || value === null) continue;
    else if (name === "commitment") {
      lines.push([name, value], ["text", opened.texts.get(value) ?? "not disclosed: what would be erased cannot be shown"]);
    } else if (name === "people") {
      for (const person of value) {
        for (const [part, item] of ordered(person, members.people)) {
          if (part !== "principal") lines.push([`${person.principal}, ${label(part)}`, show(told(opened, item), members)]);
        }
      }
    } else if (name === "recipe") {
      for (const [part, item] of ordered(value, members.recipe)) {
        lines.push([label(part), show(item, members) + (opened.resolved.includes(part) ? "  (auto)" : "")]);
      }
    } else lines.push([label(name), show(told(opened, value), members, name)]);
  }
  if (predicate.expires_at) lines.push(["expires", predicate.expires_at]);
  return [...lines, ["statement", await digest(opened.bytes)]];
}

function ordered(object, names = []) {
  const rest = Object.keys(object).filter((name) => !names.includes(name));
  return [...names.filter((name) => Object.hasOwn(object, name)), ...rest].map((name) => [name, object[name]]);
}

const told = (opened, value) => (typeof value === "string" ? opened.texts.get(value) ?? value : value);
const label = (name) => (Object.hasOwn(LABELS, name) ? LABELS[name] : name.replaceAll("_", " "));

/** Characters that have no shape of their own are written out, as the command line does: no text of another person
 * turns its own direction round, or hides a part of itself, above a signature. */
export const plain = (text) =>
  text.replace(/[\p{C}\p{Zl}\p{Zp}\p{DI}]/gu, (c) => `\\u{${c.codePointAt(0).toString(16).padStart(4, "0")}}`);

function show(value, members, name) {
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (value === null) return "none";
  if (Array.isArray(value)) return value.map((item) => show(item, members, name)).join(", ") || "none";
  if (typeof value === "object") return ordered(value, members[name]).map(([key, item]) => `${key} = ${show(item, members)}`).join(", ");
  return String(value);
}

async function describeGates(opened) {
  const data = opened.documents.get("gates"), bound = opened.statement.predicate.gates;
  if (bound === null) return [["gates", "none: no gate decides on this adapter"]];
  if (!data) return [["gates", `not disclosed: what ${bound} decides cannot be shown`]];
  const set = JSON.parse(new TextDecoder().decode(data));
  const rules = `alpha ${set.alpha}, correction ${set.correction}, luck ${set.luck}, seed ${set.seed}`;
  const lines = set.gates.map((gate) => [`gate ${gate.name}`, `${gate.leg}: ${describeGate(gate)}`]);
  return [["gates", `${set.name}, ${await digest(data)}`], ["gates, rules", rules], ...lines];
}

function describeGate(gate) {
  const margin = Number(gate.margin) ? ` by the margin ${gate.margin}` : "";
  const asked = `${gate.metric} on ${gate.set} is ${CLAIMS[gate.claim]} ${gate.comparison}${margin}, by ${gate.test}, with ${gate.least_items} items at least`;
  const slices = gate.slices.length ? `; no ${gate.slices.join(" or ")} is worse` : "";
  return asked + slices + (gate.chance === null ? "" : `; nothing to lose where it is at chance (${gate.chance})`);
}

/** The passkey's answer to exactly these bytes, put into the form's fields. */
export async function sign(opened, form, { rpId, allowed }) {
  const challenge = await crypto.subtle.digest("SHA-256", pae(opened.bytes));
  const allowCredentials = allowed.map((id) => ({ type: "public-key", id: fromBase64url(id) }));
  const found = await navigator.credentials.get({
    publicKey: { challenge, rpId, allowCredentials, userVerification: "required", timeout: 120000 },
  });
  form.elements.credential_id.value = toBase64url(found.rawId);
  form.elements.authenticator_data.value = toBase64url(found.response.authenticatorData);
  form.elements.client_data.value = toBase64url(found.response.clientDataJSON);
  form.elements.signature.value = toBase64url(found.response.signature);
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
    said.textContent = plain(text);
    row.append(term, said);
    list.append(row);
  }
}

function say(place, text) {
  place.textContent = text;
  place.hidden = false;
}

async function startSigning(section) {
  const form = section.querySelector("form"), button = form.querySelector("[data-sign]"), problem = section.querySelector("[data-problem]");
  const told = JSON.parse(section.dataset.signing);
  try {
    const opened = await open(form.elements.file.value);
    if (!kindOf(opened).startsWith(told.kind)) throw new Error(`Expected a statement of the kind ${told.kind}, got ${kindOf(opened)}.`);
    if (told.signer !== opened.statement.predicate.signer) throw new Error(`Expected a statement of ${told.signer}, got one of ${opened.statement.predicate.signer}.`);
    const endorsed = section.querySelector("[data-endorsed]");
    if (endorsed) {
      const other = await open(endorsed.dataset.endorsed);
      if ((await digest(pae(other.bytes))) !== opened.statement.predicate.order) throw new Error("The order above is not the one that you endorse.");
      draw(endorsed.querySelector("dl"), await describe(other, JSON.parse(endorsed.dataset.members)));
    }
    draw(section.querySelector("[data-lines]"), [...(await describe(opened, told.members)), ...hashedHere(opened)]);
    section.querySelector("[data-identity]").textContent = await digest(pae(opened.bytes));
    button.disabled = !told.allowed.length && told.kind === "order:";
    button.addEventListener("click", async () => {
      button.disabled = true;
      try {
        await sign(opened, form, told);
        form.submit();
        // A file is saved, and the page stays.
        const done = section.querySelector("[data-done]");
        if (done) done.hidden = false;
      } catch (error) {
        say(problem, `Nothing was signed. ${error.message}`);
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
      say(problem, `No passkey was made. ${error.message}`);
    }
  });
}

if (typeof document !== "undefined") {
  document.querySelectorAll("[data-signing]").forEach(startSigning);
  document.querySelectorAll("[data-creating]").forEach(startCreating);
}
