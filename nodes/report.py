"""Show what a result cost."""

from __future__ import annotations

from comfy_api.latest import io

from ..g2tr_core.figures.times import plot_times
from ..g2tr_core.images import to_tensor
from ..g2tr_core.report import Report
from .facts import aliases
from .host import outputs
from .sockets import CATEGORY, ReportSocket, arrived, shown_again


class ReportNode(io.ComfyNode):
    """A report -> a table and a plot."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the graph shows it."""
        schema = io.Schema(
            node_id="G2TRReport",
            display_name="Report (G²TR)",
            category=CATEGORY,
            description="What a result cost: visual tokens, KV cache and operations with and without the reduction, "
            "and where the time went.",
            search_aliases=aliases("benchmark", "timing", "profile", "statistics", "memory"),
            is_output_node=True,
            inputs=[ReportSocket.Input("report", tooltip="From Read Images, Ask, Edit Image or Text to Image.")],
            outputs=[
                io.String.Output("table", tooltip="The figures as text, which the node shows too."),
                io.Image.Output("plot", tooltip="Where the time went, a bar for every stage."),
            ],
        )
        return shown_again(schema)

    @classmethod
    def execute(cls, report: Report) -> io.NodeOutput:
        """Write and draw."""
        report = arrived("report", report)
        table = report.as_text()
        return io.NodeOutput(table, outputs.image(to_tensor(plot_times(report))), ui={"text": (table,)})
