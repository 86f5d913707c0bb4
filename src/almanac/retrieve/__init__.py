"""From documents to passages: reading (`read`), cutting (`chunk`), finding (`lexical`), measuring it (`metrics`)."""
