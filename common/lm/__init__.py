"""The one language-model engine both processes run: segments of many sessions in, logits out."""
