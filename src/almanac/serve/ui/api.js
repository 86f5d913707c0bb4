// The server, as this page sees it. Every failure is an ApiError whose message can be shown as it is.

import { readEvents } from "./events.js";
import { askToken, authorization, token } from "./token.js";

const UNREACHABLE =
  "The assistant cannot be reached. Check that it is still running and that this device is connected, then try again.";
const BROKEN_OFF = "The connection ended before the answer was checked. Try again.";

/** What went wrong: `kind` is network, busy, token, missing, request, server or stopped; `retryAfter` in seconds. */
export class ApiError extends Error {
  constructor(message, kind, { status = 0, retryAfter = null } = {}) {
    super(message);
    this.kind = kind;
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** The address of a document. Throws ApiError for a name that a browser would turn into another address. */
export function documentAddress(path) {
  const parts = String(path).split("/");
  if (parts.some((part) => part === "" || part === "." || part === "..")) {
    throw new ApiError(`"${path}" cannot be the name of a document. Rename the file and add it again.`, "request");
  }
  return `v1/documents/${parts.map(encodeURIComponent).join("/")}`;
}

/** The error that a response with a bad status stands for. */
export function failure(status, body, retryAfter) {
  const told = body?.error?.message ?? (typeof body?.detail === "string" ? body.detail : null);
  const seconds = Number.parseFloat(retryAfter);
  const options = { status, retryAfter: Number.isFinite(seconds) ? Math.max(0, seconds) : null };
  if (status === 429 || status === 503 || (status === 409 && options.retryAfter !== null)) {
    return new ApiError(told ?? "The assistant is busy. Try again in a moment.", "busy", options);
  }
  if (status === 401) return new ApiError(told ?? "A token is needed. Give it and try again.", "token", options);
  if (status === 404) return new ApiError(told ?? "It is not there. It may have been deleted.", "missing", options);
  if (status >= 500) {
    return new ApiError(told ?? "The server failed. Try again; if it stays, look at its log.", "server", options);
  }
  return new ApiError(told ?? `The server refused (${status}).`, "request", options);
}

async function send(method, address, { json, signal } = {}) {
  const used = token();
  const headers = { ...authorization(), ...(json === undefined ? {} : { "Content-Type": "application/json" }) };
  const body = json === undefined ? undefined : JSON.stringify(json);
  const settings = { method, headers, body, signal, cache: "no-store", credentials: "omit", redirect: "error" };
  let response;
  try {
    response = await fetch(new URL(address, document.baseURI), settings);
  } catch (error) {
    throw translated(error, UNREACHABLE);
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => null);
  if (response.status === 401 && (await askToken(used))) return send(method, address, { json, signal });
  throw failure(response.status, answer, response.headers.get("Retry-After"));
}

async function call(method, address, options) {
  const response = await send(method, address, options);
  try {
    return await response.json();
  } catch (error) {
    if (error instanceof SyntaxError) {
      throw new ApiError("The server answered in a form that this page does not know. Load the page again.", "server");
    }
    throw translated(error, UNREACHABLE);
  }
}

function translated(error, message) {
  if (error instanceof ApiError) return error;
  if (error?.name === "AbortError") return new ApiError("Stopped.", "stopped");
  return new ApiError(message, "network");
}

export const assistant = () => call("GET", "v1/assistant");
export const documents = async () => (await call("GET", "v1/documents")).data;
export const document_ = (path) => call("GET", documentAddress(path));
export const removeDocument = (path) => call("DELETE", documentAddress(path));
export const trainingRuns = () => call("GET", "v1/runs");
/** A run and what was added to its curves since the answer of that version; an empty one asks for all. */
export const trainingRun = (name, version) =>
  call("GET", `v1/runs/${name.split("/").map(encodeURIComponent).join("/")}?version=${encodeURIComponent(version)}`);
export const ticket = async () => (await call("POST", "v1/tickets", { json: {} })).ticket;

/** Asks; yields events of type passages, draft and at last answer. Throws ApiError, also when the stream breaks off. */
export async function* ask(question, signal) {
  const response = await send("POST", "v1/ask", { json: { question, stream: true }, signal });
  if (!(response.headers.get("Content-Type") ?? "").startsWith("text/event-stream")) {
    yield { type: "answer", answer: await response.json() };
    return;
  }
  try {
    for await (const data of readEvents(response.body)) {
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.type === "error") throw failure(event.error?.status ?? 500, event, event.error?.retry_after);
      yield event;
    }
  } catch (error) {
    throw translated(error, BROKEN_OFF);
  }
  throw new ApiError(BROKEN_OFF, "network");
}

/**
 * Sends a file; resolves with { status, body } of the server's answer, 401 and all, and rejects with ApiError.
 * `onProgress` gets the share sent, 0 to 1. XMLHttpRequest, because fetch does not tell how far an upload is.
 */
export function putDocument(path, file, { onProgress, signal }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("PUT", new URL(documentAddress(path), document.baseURI));
    request.setRequestHeader("Content-Type", "application/octet-stream");
    for (const [name, value] of Object.entries(authorization())) request.setRequestHeader(name, value);
    request.upload.addEventListener("progress", (event) => onProgress(event.total ? event.loaded / event.total : 1));
    request.addEventListener("load", () => {
      let body = null;
      try {
        body = JSON.parse(request.responseText);
      } catch {
        body = null; // the status says enough
      }
      if (request.status < 300) resolve(body ?? {});
      else reject(failure(request.status, body, request.getResponseHeader("Retry-After")));
    });
    request.addEventListener("error", () => reject(new ApiError(UNREACHABLE, "network")));
    request.addEventListener("abort", () => reject(new ApiError("Cancelled.", "stopped")));
    signal.addEventListener("abort", () => request.abort());
    request.send(file);
  });
}
