// Server-sent events from a response body (WHATWG HTML, section 9.2.6), as far as this API uses them: data lines.

/** Yields the data of every event of a byte stream; lines may be cut anywhere, inside a character too. */
export async function* readEvents(bytes) {
  const reader = bytes.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
      const lines = rest.split("\n");
      rest = done ? "" : lines.pop();
      for (const raw of lines) {
        const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
        if (line === "") {
          if (data.length) yield data.join("\n");
          data = [];
        } else if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        }
      }
      if (done) return; // an event without its blank line was cut off, and does not count
    }
  } finally {
    await reader.cancel().catch(() => undefined); // the connection may be gone already
  }
}
