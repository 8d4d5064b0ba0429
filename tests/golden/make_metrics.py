"""Writes `metrics.json`: what the reference programs say of a few made-up answers and reports.

Pinned: pycocoevalcap 1.2 (with its tokenizer and its METEOR, which need Java), rouge-score 0.1.2, sacrebleu 2.6.0,
pandas and tabulate (which LLaVA-Med's script imports), nltk. LLaVA-Med's evaluation script is taken from a checkout of
github.com/microsoft/LLaVA-Med at commit b9a98a7, never copied. Command, from this folder:
`python make_metrics.py CHECKOUT`. What the file holds: README.md.
"""

import importlib.metadata
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import pycocoevalcap.meteor.meteor as coco_meteor
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU

HERE = Path(__file__).resolve().parent
PINNED = {"pycocoevalcap": "1.2", "rouge-score": "0.1.2", "sacrebleu": "2.6.0"}

REPORTS = [  # (reference, prediction)
    ("The heart is normal in size. The lungs are clear. No pleural effusion or pneumothorax.",
     "The heart is normal in size. The lungs are clear. No pleural effusion or pneumothorax."),
    ("There is a large right pleural effusion with adjacent atelectasis. Mild cardiomegaly is noted.",
     "Large right-sided effusion with atelectasis. The heart is mildly enlarged."),
    ("Heart size within normal limits. No focal consolidation, pneumothorax, or effusion. No acute bony abnormality.",
     "No acute cardiopulmonary abnormality. Heart size is within normal limits."),
    ("A 4.5 cm mass (3 x 2.5 cm in the T2-weighted image) lies in the left lung; it can't be excluded that it's malignant.",
     "Mass of 4.5 cm in the left lung (T2-weighted image), malignancy can't be excluded."),
    ("PA and lateral views: L1-L2 degenerative changes, s/p CABG x 3, w/o contrast.",
     "Degenerative changes of the spine at L1-L2. Sternotomy wires after CABG."),
    ("ET tube tip 3.2cm above the carina. The patient's follow-up is due at 5 p.m. today, see Dr. Smith.",
     "Endotracheal tube tip 3 cm above the carina."),
    ("\"Mild\" cardiomegaly - stable; 1,000 mL effusion? Yes! No <2 mm nodules & 50% loss of height.",
     "Stable mild cardiomegaly. Effusion of 1,000 mL. Nodules, loss of height 50%."),
    ("Impression:\n1. No acute findings.\n2. Old rib fractures, healed, cannot exclude a.c. joint disease.",
     "1. No acute findings. 2. Healed rib fracture, joint disease not excluded."),
    ("The cardiac silhouette is enlarged. The lungs are hyperexpanded and clear without effusions.",
     "The lungs are clear and hyperexpanded without an effusion. The silhouette of the heart is enlarged."),
    ("Right upper lobe opacity, compatible with pneumonia. The left lung is clear. The right lung base is clear.",
     "The left lung is clear. The right lung base is clear. The right upper lobe has an opacity and pneumonia."),
    ("Findings are unchanged, compared with 10/12/2020 (no. 3 of the series).",
     "No change."),
    ("No pneumothorax.",
     "Pneumothoraces are not seen."),
    ("Stable 8mm nodules, 30ml of fluid, 10mg/dl; T1/T2 signal; L4/5 disc; 37.5 degrees; 3-4mm at C5-C6.",
     "The nodules measure 8mm. The signal of T1 and T2 is normal."),
    ("Increased interstitial markings bilaterally.",
     ""),
]

VQA = [  # (closed, reference, prediction)
    (True, "yes", "yes"), (True, "yes", "Yes."), (True, "no", "yes"), (True, "no", "No"), (True, "no", "The heart looks normal"),
    (True, "no", "abnormal"), (True, "yes", "maybe"), (True, "left", "left"), (True, "left", "left, no doubt"),
    (True, "yes", "yes and no"), (True, "no", "yes and no"), (True, "none", "none"), (True, "yes", ""), (True, "no", "none"),
    (False, "right lung", "right lung"), (False, "Right Lung", "the right lung."), (False, "lung", "the lungs"),
    (False, "pulmonary nodules", "pulmonary nodules, pulmonary masses and pulmonary edema"),
    (False, "two", "2"), (False, "there are 2", "two lesions"), (False, "none", "zero"), (False, "1,000 ml (approx.)", "1000 ml approx"),
    (False, "T1-weighted", "t1 weighted"), (False, "T1-weighted", "t1 - weighted"), (False, "L/R", "l r"), (False, "3.5 cm", "3.5cm"),
    (False, "3.5 cm.", "3.5 cm"), (False, "a mass in the left lobe", "an opacity in a lobe"), (False, "it isn't there", "it isnt there"),
    (False, "we couldnt've seen", "we couldn't've seen"), (False, "somebody'd know", "somebodyd know"), (False, "", "lung"), (False, "lung", ""),
    (False, "the the", "the"), (False, "lung, heart, lung", "lung lung heart"), (False, "heart and lung", "liver"), (False, "x" + "." * 40, "x........"),
    (False, "upper [left]", "upper left"), (False, "5 (five)", "5 5"), (False, "don't know", "dont know"), (False, "hes well", "he's well"),
]

METEOR_FLAGS = ["-l", "en", "-lower", "-m", "exact stem", "-w", "1.0 0.6", "-p", "0.85 0.2 0.6 0.5"]


def meteor(pairs):
    jar = Path(coco_meteor.__file__).parent / coco_meteor.METEOR_JAR
    with tempfile.TemporaryDirectory() as folder:
        texts = [Path(folder) / name for name in ("said", "wanted")]
        texts[0].write_text("".join(said + "\n" for _, said in pairs))
        texts[1].write_text("".join(wanted + "\n" for wanted, _ in pairs))
        command = ["java", "-Xmx1G", "-jar", str(jar), *map(str, texts), *METEOR_FLAGS]
        lines = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.splitlines()
    segments = [float(line.split()[-1]) for line in lines if line.startswith("Segment")]
    final = [float(line.split()[-1]) for line in lines if line.startswith("Final score")]
    assert len(segments) == len(pairs) and len(final) == 1, lines
    return segments, final[0]


def shuffled():
    """Texts with many ways to align them: few words, their inflections, any order."""
    source = random.Random(7)
    words = "lung lungs clear clearly the the of effusion effusions nodule nodules".split()
    text = lambda: " ".join(source.choice(words) for _ in range(source.randint(3, 14)))
    return [(text(), text()) for _ in range(60)]


def reports():
    keys = range(len(REPORTS))
    cut = PTBTokenizer()
    words = [{key: value[0] for key, value in cut.tokenize({key: [{"caption": pair[side]}] for key, pair in zip(keys, REPORTS)}).items()}
             for side in (0, 1)]
    wanted, said = ({key: [words[side][key]] for key in keys} for side in (0, 1))
    pairs = [(words[0][key], words[1][key]) for key in keys]
    # Pairs without words cannot be given to METEOR's program line by line.
    full = [pair for pair in pairs if pair[1]]
    bleu, _ = Bleu(4).compute_score(wanted, said, verbose=0)
    cider, each_cider = Cider().compute_score(wanted, said)
    rouge, each_rouge = Rouge().compute_score(wanted, said)
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    each_rouge_l = [scorer.score(reference, prediction)["rougeL"].fmeasure for reference, prediction in REPORTS]
    sacre = [BLEU(tokenize="none", smooth_method="none", force=True, max_ngram_order=order)
             .corpus_score([words[1][key] for key in keys], [[words[0][key] for key in keys]]).score for order in (1, 2, 3, 4)]
    each_meteor, whole_meteor = meteor(full)
    random_pairs = shuffled()
    each_random, whole_random = meteor(random_pairs)
    return {
        "pairs": [{"reference": reference, "prediction": prediction, "reference_words": words[0][key], "prediction_words": words[1][key],
                   "rouge_l": each_rouge_l[key], "rouge_l_coco": float(each_rouge[key]), "cider_d": float(each_cider[key])}
                  for key, (reference, prediction) in zip(keys, REPORTS)],
        "bleu": [float(value) for value in bleu], "sacrebleu": sacre, "rouge_l_coco": float(rouge), "cider_d": float(cider),
        "meteor": {"flags": " ".join(METEOR_FLAGS), "each": each_meteor, "whole": whole_meteor},
        "meteor_shuffled": {"pairs": random_pairs, "each": each_random, "whole": whole_random},
    }


def answers(checkout):
    """The script's own function, fed one answer at a time. Its list of candidate answers, which only open accuracy needs, is a stub."""
    sys.path.insert(0, str(Path(checkout) / "llava" / "eval"))
    import warnings
    import run_eval
    warnings.simplefilter("ignore")
    scored = []
    for closed, reference, prediction in VQA:
        if closed:
            # Without an open answer it divides by zero; this one is never looked at.
            rows = [("CLOSED", reference, prediction), ("OPEN", "lung", "lung")]
        else:
            rows = [("OPEN", reference, prediction)]
        gt = [{"conversations": [{}, {"value": reference}], "answer_type": kind} for kind, reference, _ in rows]
        pred = [{"text": prediction, "question_id": 0} for _, _, prediction in rows]
        table = run_eval.evaluate(gt, pred, {"0": ["lung"]})
        values = {line[:18].strip(): float(line.split()[-1]) / 100 for line in table.splitlines()[2:]}
        row = {"closed": closed, "reference": reference, "prediction": prediction}
        if closed:
            row["right"] = values["yes/no accuracy"] == 1.0
        else:
            row.update(exact=values["exact match score"], f1=values["f1 score"], precision=values["precision"], recall=values["recall"])
        scored.append(row)
    return scored


def main():
    versions = {name: importlib.metadata.version(name) for name in PINNED}
    assert versions == PINNED, versions
    os.environ["PYTHONHASHSEED"] = "0"
    whole = {"versions": {**versions, "llava-med": "b9a98a7"}, "reports": reports(), "answers": answers(sys.argv[1])}
    (HERE / "metrics.json").write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")


main()
