"""Questions of an evaluation, whoever asks them: one item, the verbs that answer it, scores with bootstrap draws."""
