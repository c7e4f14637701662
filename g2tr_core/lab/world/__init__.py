"""A small synthetic world of coloured shapes and digits: the pictures, questions and edits of the embedded checkpoints.

Everything in it is drawn from a seed and is true by construction, so a network can be trained and evaluated on it with
no data set: `scene` says what is in a picture, `render` draws it, `questions`, `edits` and `captions` describe it,
`splits` keeps training and test apart, and `vocabulary` lists the words.
"""
