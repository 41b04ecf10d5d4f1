"""Prefix tuning (Li & Liang 2021): trained keys and values in front of every attention layer of a frozen model.

Needs torch and transformers, and nothing of the rest of `pipeline` but `errors`, `files` and `digest`.
"""
