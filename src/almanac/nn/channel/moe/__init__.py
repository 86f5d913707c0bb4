"""Mixtures of experts: channels of which every token uses a part."""
