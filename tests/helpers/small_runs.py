"""Options of the training commands that make a run of a few steps of a small model."""

SHORT = ["--train.steps", "6", "--train.batch-size", "8", "--train.eval-every", "6", "--train.warmup", "2"]
SHORT += ["--size", "None"]  # no setting follows the data
FILES = ["--train.accumulate", "2", "--train.workers", "0", "--train.precision", "fp32"]

SMALL_VIT = ["--model.image-size", "8", "--model.patch-size", "4", "--model.dim", "16", "--model.heads", "2"]
SMALL_VIT += ["--model.depth", "1"]
IMAGES = [*SHORT, *SMALL_VIT, *FILES]

SMALL_AST = ["--model.n-mels", "24", "--model.max-frames", "60", "--model.patch-size", "8", "--model.stride", "8"]
SMALL_AST += ["--model.dim", "16", "--model.heads", "2", "--model.depth", "1", "--model.time-mask", "8"]
CLIPS = [*SHORT, *SMALL_AST, *FILES]

TEXTS = [*SHORT, "--train.precision", "fp32", "--model.dim", "16", "--model.heads", "2", "--model.depth", "1"]
TEXTS += ["--model.max-length", "24"]
LONGER = ["--train.steps", "60", "--train.lr", "3e-3", *TEXTS[2:]]
"""Long enough to learn two classes of texts."""

# What the run of a classifier leaves in its directory, in every modality.
CLASSIFIER_RUN = ("config.json", "metrics.jsonl", "summary.json", "checkpoints", "model", "report.html")
CLASSIFIER_RUN += ("explore.html", "tensorboard")
