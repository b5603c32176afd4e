"""How likely is each answer? `score` tells, exactly, after computing the prompt once."""

import tallow

model = tallow.Model("smollm2")
review = "The film was far too long and I nearly fell asleep."

scores = model.score(f"Review: {review}\nSentiment:", [" positive", " negative", " neutral"])
print(review)
for score in sorted(scores, key=lambda score: -score.probability):
    print(f"   {score.text.strip():10} {score.probability:6.1%}   log likelihood {score.logprob:7.3f}")
