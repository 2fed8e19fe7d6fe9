"""A demo of a multi-task sentence model: every label of a sentence, pairs, and a small semantic search.

This is the app.py of a Hugging Face Space. The model lies in the folder `model` beside it.
"""

from pathlib import Path

import gradio as gr
from transformers import AutoModel

TITLE = "A multi-task sentence model"
FOLDER = Path(__file__).parent / "model"
MOST_LABELS = 8  # shown of a task
MOST_LINES = 1_000  # that a search goes through
LINES = (
    "The parcel came a week late.",
    "I love the colour.",
    "Nobody answers the phone.",
    "The courier lost my order.",
)

model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True, dtype="float32").eval()


def ask(row):
    """The answers to a sentence, or to a pair, by task; none where no task reads such rows."""
    try:
        return model.predict(row, as_list=True)
    except ValueError:
        return {}


SINGLE, PAIR = ask("A sentence."), ask(("A sentence.", "Another one."))


def component(task, answer):
    """What shows a task's answer: bars for labels, a number for a value or a score."""
    if "scores" in answer:
        return gr.Label(label=task, num_top_classes=MOST_LABELS)
    return gr.Number(label=task, precision=3)


def shown(answers, tasks):
    """The answers in the order of the components."""
    found = []
    for task in tasks:
        answer = answers[task]
        found.append(answer["scores"] if "scores" in answer else answer.get("value", answer.get("score")))
    return found if len(found) != 1 else found[0]


def answer_sentence(sentence):
    return shown(ask(sentence), SINGLE)


def answer_pair(first, second):
    return shown({**ask((first, second)), "cosine": {"score": cosine(first, second)}}, [*PAIR, "cosine"])


def cosine(first, second):
    return float(model.similarity([first], [second])[0, 0])


def search(query, text):
    """Lines by their cosine to the query, best first."""
    lines = [line.strip() for line in text.splitlines() if line.strip()][:MOST_LINES]
    if not lines or not query.strip():
        return []
    cosines = model.similarity([query], lines)[0]
    return [[f"{cosines[place]:.3f}", lines[place]] for place in (-cosines).argsort()[:10]]


with gr.Blocks(title=TITLE) as demo:
    gr.Markdown(f"# {TITLE}\n\nOne small model, one pass of it, every answer.")
    if SINGLE:
        with gr.Tab("One sentence"):
            sentence = gr.Textbox(label="Sentence", value="What a lovely evening!", elem_id="sentence")
            button = gr.Button("Answer", variant="primary", elem_id="answer")
            with gr.Row():
                outputs = [component(task, answer) for task, answer in SINGLE.items()]
            gr.on([button.click, sentence.submit], answer_sentence, sentence, outputs, api_name="answer")
    with gr.Tab("Two sentences"):
        first = gr.Textbox(label="First sentence", value="A man plays the guitar.", elem_id="first")
        second = gr.Textbox(label="Second sentence", value="Somebody is playing music.", elem_id="second")
        button = gr.Button("Compare", variant="primary", elem_id="compare")
        with gr.Row():
            outputs = [component(task, answer) for task, answer in PAIR.items()]
            outputs.append(gr.Number(label="cosine of the embeddings", precision=3))
        gr.on([button.click, first.submit, second.submit], answer_pair, [first, second], outputs, api_name="compare")
    with gr.Tab("Search"):
        query = gr.Textbox(label="What do you look for?", value="complaints about delivery", elem_id="query")
        text = gr.Textbox(
            label="Lines to search",
            lines=6,
            value="\n".join(LINES),
            elem_id="lines",
        )
        button = gr.Button("Search", variant="primary", elem_id="search")
        found = gr.Dataframe(headers=["cosine", "line"], type="array", interactive=False, wrap=True)
        gr.on([button.click, query.submit], search, [query, text], found, api_name="search")

if __name__ == "__main__":
    demo.launch()
