"""Bag-of-words baselines, beside which the README puts its figures: ``python tests/baselines.py [DATA]``.

Logistic regression from scikit-learn on unigram counts and on TF-IDF of words and word pairs, for several strengths of
regularisation; the best on the test texts is printed, which flatters the baseline.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)


def accuracy(vectorizer, train, test, strengths=STRENGTHS):
    from sklearn.linear_model import LogisticRegression

    features, held_out = vectorizer.fit_transform(train["text"]), vectorizer.transform(test["text"])
    return max(LogisticRegression(C=strength, max_iter=1000).fit(features, train["label"])
               .score(held_out, test["label"]) for strength in strengths)


def baselines(train, test, strengths=STRENGTHS):
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

    pairs = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    return {"unigram counts": accuracy(CountVectorizer(), train, test, strengths),
            "TF-IDF (1,2)-grams": accuracy(pairs, train, test, strengths)}


if __name__ == "__main__":
    from ms_gpt import load_dataset

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="?", default="sample")
    parser.add_argument("--test-data")
    given = parser.parse_args()
    parts = load_dataset(given.data)
    test = next(iter(load_dataset(given.test_data).values())) if given.test_data else parts["test"]
    for name, value in baselines(parts["train"], test).items():
        sys.stdout.write(f"{name:<20}{value:.4f}\n")
