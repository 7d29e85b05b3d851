"""What of a command its command line names, to refuse what a way of running it would pass over."""

from __future__ import annotations

import click


def given_parameters() -> dict[str, str]:
    """Of the command that runs: what its command line names, by name, each as a person writes it.

    So ``{"targets": "RUN_OR_ANSWERS", "as_json": "--json"}``.
    """
    context = click.get_current_context()
    given = click.core.ParameterSource.COMMANDLINE
    return {
        str(one.name): one.opts[0]
        if isinstance(one, click.Option)
        else one.make_metavar(context).strip("[].")
        for one in context.command.params
        if context.get_parameter_source(str(one.name)) is given
    }
