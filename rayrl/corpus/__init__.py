"""From raw text to instructions: pure steps over batches of documents, which stages/corpus.py runs on Ray Data.

pieces.py -> containers.py -> reader.py         files to documents
lexicon.py -> segments.py -> rules.py -> ...    a step each: a batch in; what is kept, and why the rest isn't, out
"""
