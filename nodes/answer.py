"""Ask about pictures that were read."""

from __future__ import annotations

from comfy_api.latest import io

from ..g2tr_core.checks import prompt
from ..g2tr_core.embedded import SAMPLE
from ..g2tr_core.generation.settings import Decoding
from .facts import aliases, tip
from .host.memory import ManagedModel, ManagedReading
from .sockets import (
    CATEGORY,
    arrived,
    blank,
    number_input,
    readers_model_input,
    reading_input,
    report_output,
    seed_input,
    shown_again,
    thinking_output,
    whole_input,
)


class Ask(io.ComfyNode):
    """A reading and a question -> an answer."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the graph shows it."""
        schema = io.Schema(
            node_id="G2TRAsk",
            display_name="Ask (G²TR)",
            category=CATEGORY,
            description="Answers a question about pictures that were read. Another question does not read them again.",
            search_aliases=aliases("vqa", "caption", "describe", "interrogate", "image to text"),
            is_output_node=True,
            inputs=[
                reading_input(),
                io.String.Input(
                    "question",
                    multiline=True,
                    default=SAMPLE.question,
                    placeholder="What do you want to know about the picture?",
                    tooltip="What to ask, in any language that the model speaks.",
                ),
                whole_input(
                    "max_tokens",
                    512,
                    high=32768,
                    tooltip="Longest answer, in tokens of about four letters. With think, the thinking counts too: "
                    "allow 1000 or more.",
                ),
                io.Boolean.Input(
                    "think",
                    default=False,
                    tooltip=tip(
                        "Let the model reason first. Slower; better for questions that need several steps.{no_thinking}"
                    ),
                ),
                number_input(
                    "temperature",
                    high=10.0,
                    step=0.05,
                    tooltip="0 always takes the likeliest word, so the seed does nothing. Higher varies more; 0.3 is "
                    "a good start.",
                    advanced=True,
                ),
                number_input(
                    "top_p",
                    1.0,
                    high=1.0,
                    tooltip="With a temperature: choose only among the likeliest words that hold this share of the "
                    "probability.",
                    advanced=True,
                ),
                seed_input("With a temperature: which variant to take.", advanced=True, then="fixed"),
                readers_model_input(),
            ],
            outputs=[
                io.String.Output("answer", tooltip="The answer, which the node shows too."),
                thinking_output(),
                report_output(),
            ],
        )
        return shown_again(schema)

    @classmethod
    def validate_inputs(cls, question: str | None = None) -> bool | str:
        """Refuse a question that says nothing."""
        return blank("question", question)

    @classmethod
    def execute(
        cls,
        reading: ManagedReading,
        question: str,
        max_tokens: int = 512,
        think: bool = False,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        model: ManagedModel | None = None,
    ) -> io.NodeOutput:
        """Answer."""
        reading = arrived("reading", reading)
        prompt("question", question)
        decoding = Decoding(max_tokens, temperature, top_p, seed)
        answer = (model or reading.owner).answer(reading, question, decoding, think)
        report = answer.report.after(reading.reading.report)
        shown = [answer.text, *(f"({caveat})" for caveat in reading.caveats)]
        return io.NodeOutput(answer.text, answer.thinking, report, ui={"text": ("\n\n".join(shown),)})
