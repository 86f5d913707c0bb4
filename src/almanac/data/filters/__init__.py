"""What a text is written in and what does not belong to it: `language`, `repair`, `boilerplate`, `code`."""
