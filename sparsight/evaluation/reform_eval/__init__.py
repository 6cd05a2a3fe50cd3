"""ReForm-Eval (Li et al., arXiv 2310.02569): one form for all questions, answers by generation and by likelihood."""
