"""Ask about pictures that were read."""

from __future__ import annotations

from comfy_api.latest import io

from ..g2tr_core.generation.settings import Decoding
from . import host
from .sockets import CATEGORY, model_input, reading_input, report_output, seed_input, thinking_output


class Ask(io.ComfyNode):
    """A reading and a question -> an answer."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the graph shows it."""
        return io.Schema(
            node_id="G2TRAsk",
            display_name="Ask (G²TR)",
            category=CATEGORY,
            description="Answers a question about pictures that were read. Another question does not read them again.",
            search_aliases=["g2tr", "bagel", "internvl", "vqa", "caption", "describe", "interrogate", "image to text"],
            inputs=[
                model_input(),
                reading_input(),
                io.String.Input(
                    "question",
                    multiline=True,
                    default="What is in this picture?",
                    placeholder="What do you want to know about the picture?",
                    tooltip="What to ask, in any language that the model speaks.",
                ),
                io.Int.Input(
                    "max_tokens",
                    default=512,
                    min=1,
                    max=32768,
                    tooltip="Longest answer, in tokens of about four letters. With think, the thinking counts too: "
                    "allow 1000 or more.",
                ),
                io.Boolean.Input(
                    "think",
                    default=False,
                    tooltip="Let the model reason first. Slower; better for questions that need several steps. "
                    "InternVL-U reasons only before it paints.",
                ),
                io.Float.Input(
                    "temperature",
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    round=0.01,
                    tooltip="0 always takes the likeliest word, so the seed does nothing. Higher varies more; the "
                    "authors use 0.3.",
                    advanced=True,
                ),
                io.Float.Input(
                    "top_p",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="With a temperature: choose only among the likeliest words that hold this share of the "
                    "probability.",
                    advanced=True,
                ),
                seed_input("With a temperature: which variant to take.", advanced=True),
            ],
            outputs=[
                io.String.Output("answer", tooltip="The answer. Connect it to Preview as Text to see it."),
                thinking_output(),
                report_output(),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: host.ManagedModel,
        reading: host.ManagedReading,
        question: str,
        max_tokens: int = 512,
        think: bool = False,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> io.NodeOutput:
        """Answer."""
        decoding = Decoding(max_tokens, temperature, top_p, seed)
        answer = model.answer(reading, question, decoding, think)
        report = answer.report.after(reading.reading.report)
        return io.NodeOutput(answer.text, answer.thinking, report, ui={"text": (answer.text,)})
