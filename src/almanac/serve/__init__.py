"""An assistant over HTTP: the OpenAI-compatible API, answers with citations, documents, and a page of its own."""
