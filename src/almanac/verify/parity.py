"""Parity contracts: trained = merged = compressed within bound = exported = served, each step checked as it is taken.

A step that claims to change nothing (fold, save, export) may move a logit by rounding only; a lossy one (quantization)
has a stated bound on the mean KL divergence. Beyond its bound a step fails closed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from almanac.core.errors import ParityError
from almanac.core.site import AROUND, Leaf, Site
from almanac.core.technique import Technique
from almanac.verify.probes import Divergence, Form, divergence, probe_ids, probe_logits

EQUAL = 1e-4
"""Steps that change nothing may move a logit by this share of the largest one: float32 rounding through a deep model."""


def require_equal(found: Divergence, step: str) -> None:
    """Raises ParityError if a step that should change nothing did."""
    if not found.relative <= EQUAL:
        raise ParityError(
            f"After {step} a logit differs by {found.largest:.3g} ({found.relative:.2g} of the largest; "
            f"{found.agreement:.1%} of best tokens agree)",
            remedy="The result is another model and was not kept. Please report it with the certificate.",
        )


def require_within(found: Divergence, bound: float, step: str) -> None:
    """Raises ParityError if a lossy step lost more than its bound (or produced something that is not a number)."""
    if not found.mean_kl <= bound:
        raise ParityError(
            f"{step} costs {found.mean_kl:.3g} nats per token, more than its bound of {bound:.3g}",
            remedy="Choose a format with more bits, or raise the bound knowingly.",
        )


@contextmanager
def folding(form: Form) -> Iterator[None]:
    """The model must compute the same after the block as before it; otherwise it is put back as it was."""
    rows = probe_ids(form)
    before = probe_logits(form, rows)
    with _put_back_on_failure(form):
        yield
        found = divergence(before, probe_logits(form, rows))
        require_equal(found, "folding")
    _record(form, "fold", found, EQUAL)


@contextmanager
def quantizing(form: Form, technique: Technique, bound: float | None) -> Iterator[None]:
    """The block may cost at most ``bound`` (the technique's own if None); beyond it the model is put back as it was."""
    rows = probe_ids(form)
    before = probe_logits(form, rows)
    limit = technique.loss_bound() if bound is None else bound
    with _put_back_on_failure(form):
        yield
        found = divergence(before, probe_logits(form, rows))
        require_within(found, limit, technique.title)
    _record(form, technique.title, found, limit)


@contextmanager
def _put_back_on_failure(form: Any) -> Iterator[None]:
    """Weights, wrappers, flags, plan and provenance are as before if the block raises, halfway or at its end."""
    sites = [module for module in form.network.modules() if isinstance(module, Site)]
    weights = [(site, site.weight) for site in sites if isinstance(site, Leaf)]
    flags = [(parameter, parameter.requires_grad) for parameter in form.network.parameters()]
    wrappers = [(site, _wrappers(site)) for site in sites]
    plan, provenance = form.plan, copy.deepcopy(form.provenance)
    try:
        yield
    except BaseException:
        for leaf, weight in weights:
            leaf.set_weight(weight)
        for site, before in wrappers:
            for name in _wrappers(site):
                site.unwrap(name)
            for name, wrapper in before.items():
                site.wrap(name, wrapper)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        form.plan, form.provenance = plan, provenance
        raise


def _wrappers(site: Site) -> dict[str, Any]:
    return dict(dict(site.named_children()).get(AROUND, nn.Module()).named_children())


def _record(form: Any, step: str, found: Divergence, bound: float) -> None:
    steps = form.provenance.setdefault("parity", [])
    steps.append({"step": step, "bound": bound, **found.to_dict()})
