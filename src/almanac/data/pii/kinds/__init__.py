"""One file for each kind of personal data; each has ``find(text)``, and being here is all the registration it needs."""
