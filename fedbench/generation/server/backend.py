"""Asking an OpenAI-compatible server: a `vllm serve` of one's own, or a hosted model.

With the *chat* API the server writes the prompt itself, by its own chat template. With the
*completions* API prompts are written here: as text, or as token ids where the model's tokenizer is
at hand, so that the server reads the same tokens as the other backends do.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fedbench.data.templates import Template, Turn
from fedbench.errors import CheckpointError, ConfigError, MissingExtraError
from fedbench.generation.backend import (
    Answer,
    Answered,
    Batch,
    Checkpoint,
    Constraint,
    Job,
    Question,
    Request,
    Written,
)
from fedbench.generation.prompts import Prompts
from fedbench.generation.server.access import Api, Form, ServerConfig
from fedbench.generation.server.client import Message, ServerClient
from fedbench.generation.server.likelihoods import Means, find_means, loglikelihoods
from fedbench.generation.server.pacing import OneKindAtOnce
from fedbench.generation.server.responses import ModelCard, Unanswered
from fedbench.generation.server.served import adapter_name, server_hash
from fedbench.generation.server.spending import PRICES, Usage

_UNLIMITED = 10**9  # tokens; no text is as long
_CANARY_CHOICES = 4
"""Where each choice of a canary is a request of its own."""


class OpenAIBackend:
    """Answers from a server; one request per job, many jobs at once."""

    def __init__(
        self,
        client: ServerClient,
        *,
        api: Api = "chat",
        tokenizer: str | Path | None = None,
        base_hash: str | None = None,
        adapters: Mapping[str, str] | None = None,
        load_adapters: bool = False,
        constrain: Form = "auto",
    ) -> None:
        """Nothing is sent yet.

        Args:
            client: of the server.
            api: ``chat`` or ``completions``.
            tokenizer: directory or hub id of the model's tokenizer, for `completions`.
            base_hash: of the base weights that the server has, where they are known; by default a
                hash of the server's address and the model's name.
            adapters: served names of adapters, by their directory, its last part or the weights
                hash.
            load_adapters: have a `vllm serve` load the adapters, from directories it can read.
            constrain: how answers are held to a form.

        Raises:
            ConfigError: there is a tokenizer, and nothing to use it for.
        """
        if api == "chat" and tokenizer is not None:
            raise ConfigError(
                "a tokenizer is named, but with the chat API the server writes the prompt; leave "
                "it out, or choose the completions API"
            )
        self.client = client
        self.api = api
        self.base_hash = base_hash or server_hash(client.base_url, client.model)
        extra = f" {json.dumps(client.extra, sort_keys=True)}" if client.extra else ""
        self.name = f"openai {api} {client.base_url} {client.model}{extra}"
        self._tokenizer = tokenizer
        self._adapters = dict(adapters or {})
        self._load_adapters = load_adapters
        self._constrain = constrain
        self._loading = asyncio.Lock()
        self._turns = OneKindAtOnce()
        self._loaded: set[str] = set()

    @property
    def usage(self) -> Usage:
        """Requests, tokens and dollars so far."""
        return self.client.ledger.usage

    def prepare(self, questions: Sequence[Question], template: Template) -> list[Request]:
        """Messages, prompts or token ids, as the API and the template want.

        Raises:
            ConfigError: the server cannot be asked for what they want.
            ServerError: it cannot be used.
        """
        if any(question.kind == "choice" for question in questions):
            self._require_likelihoods()
        if self._prompts is not None:
            return self._prompts.prepare(questions, template)
        return [self._written(question, template) for question in questions]

    def prepare_written(self, prompts: Sequence[Written]) -> list[Request]:
        """The prompt as it is, or as what a user says.

        Raises:
            ConfigError: the server cannot be asked for what they want.
            ServerError: it cannot be used.
        """
        if any(prompt.kind == "choice" for prompt in prompts):
            self._require_likelihoods()
        if self._prompts is not None:
            return self._prompts.prepare_written(prompts)
        requests = []
        for prompt in prompts:
            context, space = prompt.context, ""
            if prompt.kind == "choice":  # white space belongs to the word behind it
                context = prompt.context.rstrip()
                space = prompt.context[len(context) :]
            requests.append(
                self._request(prompt, context, [space + choice for choice in prompt.choices])
            )
        return requests

    def canaries(self, requests: Sequence[Request]) -> list[Request]:
        """Choices between tokens; none where there is no tokenizer or no log-probabilities."""
        if self._prompts is None or not self._means:
            return []
        canaries = self._prompts.canaries(requests)
        if self._means.token_by_token:
            return canaries
        return [replace(canary, choices=canary.choices[:_CANARY_CHOICES]) for canary in canaries]

    def plan(self, requests: Sequence[Request]) -> list[Batch]:
        """Each on its own: the server makes its batches."""
        return [Batch((position,)) for position in range(len(requests))]

    def stream(self, jobs: Iterable[Job]) -> Generator[Answered, None, None]:
        """Answer as many jobs at once as the client may have requests.

        Raises:
            CheckpointError: the server does not have a checkpoint's weights.
            BudgetError: the budget is exhausted; all that was paid for has been yielded.
            ServerError: the server cannot be used.
        """
        # Asked for here, and not in the event loop, which would wait for itself.
        _ = self._cards
        yield from self.client.stream(self._possible(jobs), self._answer_job)

    def constrains(self, constraint: Constraint) -> bool:
        """Whether the server sees to it; `response_format` knows JSON only."""
        return bool(self._fields_of(constraint))

    def close(self) -> None:
        """Let go of the server."""
        self.client.close()

    def _possible(self, jobs: Iterable[Job]) -> Iterator[Job]:
        for job in jobs:
            if any(request.kind == "choice" for request in job.requests):
                self._require_likelihoods()
            yield job

    async def _answer_job(self, job: Job) -> list[Answer]:
        model = await self._served_name(job.checkpoint)
        # In a batch with adapters, vLLM's CPU build (0.32.0) gives rows of the base an adapter's
        # weights. Nothing over HTTP tells which build it is, so that they are kept apart on all.
        kind = "base" if model == self.client.model else "adapter"
        async with self._turns.turn(kind):
            if len(job.requests) == 1:
                return [await self._answer(job.requests[0], model)]
            return list(await asyncio.gather(*(self._answer(r, model) for r in job.requests)))

    async def _answer(self, request: Request, model: str) -> Answer:
        try:
            if request.kind == "choice":
                return await loglikelihoods(self.client, self._means, request, model)
            if request.messages:
                fields = self._fields_of(request.constraint)
                reply = await self.client.chat(request.messages, request.sampling, model, **fields)
            else:
                ends = list(request.ends) if self._is_vllm else []
                fields = self._fields_of(request.constraint)
                fields |= {"stop_token_ids": ends} if ends else {}
                prompt = request.ids or request.prompt
                reply = await self.client.complete(prompt, request.sampling, model, **fields)
        except Unanswered as error:
            return Answer(error=str(error))
        return Answer(text=reply.text, finish=reply.finish, num_tokens=reply.num_tokens)

    def _written(self, question: Question, template: Template) -> Request:
        is_chat = not template.adds_special_tokens
        if self.api == "chat" and is_chat:
            messages = _messages(question.turns)
            return Request(
                question.kind, _as_text(messages), (), question.sampling, messages=messages
            )
        if is_chat:
            raise ConfigError(
                "the template is chat, which the completions API needs the model's tokenizer for; "
                "name the tokenizer, use the chat API, or choose another template with --template"
            )
        if question.closed:
            raise ConfigError(
                f"{self.client.base_url}: whole answers are scored with the token that closes "
                "them; name the model's tokenizer"
            )
        prompt, lead = template.prompt(question.turns, tokenizer=None)
        return self._request(question, prompt, [lead + choice for choice in question.choices])

    def _request(self, asked: Question | Written, prompt: str, texts: Sequence[str]) -> Request:
        messages: tuple[Message, ...] = (("user", prompt),) if self.api == "chat" else ()
        return Request(
            asked.kind, prompt, (), asked.sampling, messages=messages, texts=tuple(texts)
        )

    def _require_likelihoods(self) -> None:
        advice = "or score a variant of the task that generates its answer"
        if self.api == "chat":
            raise ConfigError(
                f"{self.client.base_url}: tasks of kind choice need log-probabilities of the "
                "answers, which the chat API does not give; use the completions API of a server "
                f"that does, such as vLLM's, {advice}"
            )
        if self._means:
            return
        if self._has_adapters and self._tokenizer is None:
            raise ConfigError(
                f"{self.client.base_url}: serves adapters, and tasks of kind choice are then asked "
                f"token by token; name the model's tokenizer, {advice}"
            )
        raise ConfigError(
            f"{self.client.base_url}: tasks of kind choice need log-probabilities of the answers, "
            "and this server gives neither those of a prompt (echo with logprobs) nor those of "
            f"chosen tokens (logprob_token_ids); use another, such as vLLM's, {advice}"
        )

    async def _served_name(self, checkpoint: Checkpoint) -> str:
        directory = checkpoint.directory
        if directory is None or checkpoint.kind == "base" or str(directory) == checkpoint.base:
            return self.client.model
        for name in (str(directory), directory.name, checkpoint.weights_hash):
            if name in self._adapters:
                return self._adapters[name]
        own_name = adapter_name(checkpoint)
        async with self._loading:
            if own_name in self._loaded | {card.id for card in self._cards}:
                return own_name
            if self._load_adapters and checkpoint.kind == "adapter":
                await self.client.load_adapter(own_name, directory.resolve())
                self._loaded.add(own_name)
                return own_name
        how = (
            f"serve it as {own_name} (--lora-modules {own_name}={directory}), say under which name "
            "it is served, or let the server load adapters"
            if checkpoint.kind == "adapter"
            else "serve it, and give that server's address"
        )
        raise CheckpointError(f"{directory}: {self.client.base_url} does not serve it; {how}")

    @cached_property
    def _cards(self) -> list[ModelCard]:
        return self.client.run(self.client.models())

    def _fields_of(self, constraint: Constraint | None) -> dict[str, Any]:
        """What is sent for a constraint; nothing where the server knows no such thing."""
        if constraint is None or self._constrain == "none":
            return {}
        way = self._constrain
        if way == "auto":
            way = "response_format" if self.client.is_openai else "structured_outputs"
            if not self.client.is_openai and not self._is_vllm:
                return {}
        if way == "structured_outputs":
            if constraint.choices:
                return {"structured_outputs": {"choice": list(constraint.choices)}}
            return {"structured_outputs": {"json": json.loads(constraint.json_schema)}}
        if self.api != "chat" or not constraint.json_schema:
            return {}
        schema = {"name": "answer", "schema": json.loads(constraint.json_schema), "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}

    @property
    def _is_vllm(self) -> bool:
        return any(card.owned_by == "vllm" for card in self._cards)

    @property
    def _has_adapters(self) -> bool:
        served = any(card.parent for card in self._cards)
        return served or self._load_adapters or bool(self._adapters)

    @cached_property
    def _means(self) -> Means:
        if self.api == "chat":
            return Means(token_by_token=False, echo=None)
        asking = find_means(
            self.client,
            with_ids=self._tokenizer is not None,
            with_adapters=self._has_adapters,
        )
        return self.client.run(asking)

    @cached_property
    def _prompts(self) -> Prompts | None:
        if self._tokenizer is None:
            return None
        try:
            import transformers
        except ImportError as error:
            raise MissingExtraError("a tokenizer", "train") from error
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(self._tokenizer))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self._tokenizer}: holds no tokenizer ({error})") from error
        served = [card.max_model_len for card in self._cards if card.id == self.client.model]
        longest = next((length for length in served if length), tokenizer.model_max_length)
        return Prompts(tokenizer, min(longest, _UNLIMITED), len(tokenizer))


def open_server(
    config: ServerConfig, base_hash: str | None = None, *, with_key: bool = True
) -> OpenAIBackend:
    """The backend that a description asks for.

    Args:
        config: the server and how it is asked.
        base_hash: as in `OpenAIBackend`.
        with_key: False where nothing will be sent.

    Raises:
        ConfigError: the description does not hold together, or names a key that is not set.
        MissingExtraError: the package `openai` is not installed.
    """
    client = ServerClient(
        config.base_url,
        config.model,
        api_key_variable=config.api_key_variable,
        concurrency=config.concurrency,
        requests_per_minute=config.requests_per_minute,
        timeout=config.timeout,
        max_retries=config.max_retries,
        budget=config.budget,
        prices=Path(config.prices) if config.prices else PRICES,
        extra=config.extra,
        with_key=with_key,
    )
    return OpenAIBackend(
        client,
        api=config.api,
        tokenizer=config.tokenizer,
        base_hash=base_hash,
        adapters=config.adapters,
        load_adapters=config.load_adapters,
        constrain=config.constrain,
    )


def _messages(turns: Sequence[Turn]) -> tuple[Message, ...]:
    messages: list[Message] = [("system", turns[0].system)] if turns[0].system else []
    for turn in turns:
        question = f"{turn.instruction}\n{turn.input}" if turn.input else turn.instruction
        messages.append(("user", question))
        if turn.response is not None:
            messages.append(("assistant", turn.response))
    return tuple(messages)


def _as_text(messages: Sequence[Message]) -> str:
    return "\n".join(f"{role}: {content}" for role, content in messages)
