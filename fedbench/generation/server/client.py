"""A client of OpenAI-compatible servers: many requests at once, retried, counted and paid for.

It takes messages or a prompt and gives text; who asks, and what for, it does not know. Requests
run in an event loop on a thread of its own, and the caller reads answers from a plain iterator.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel

from fedbench.errors import MissingExtraError
from fedbench.generation.backend import Sampling
from fedbench.generation.server.access import checked_url, read_key
from fedbench.generation.server.pacing import Pace, PassingError, retry_after
from fedbench.generation.server.responses import (
    ChatResponse,
    ModelCard,
    ModelList,
    Reply,
    ServerError,
    TextResponse,
    Unanswered,
    Usage,
    read_reply,
)
from fedbench.generation.server.spending import (
    PRICES,
    BudgetError,
    Ledger,
    Tokens,
    find_price,
    most_tokens,
)
from fedbench.generation.server.streaming import answered

T = TypeVar("T")
R = TypeVar("R")
_B = TypeVar("_B", bound=BaseModel)
Message = tuple[str, str]
"""(role, content)"""

_OPENAI = "api.openai.com"
_OPENAI_KEY = "OPENAI_API_KEY"
_RETRIED = {408, 409, 425, 429}
_LONGEST_WAIT = 300.0
"""Seconds; a server that wants more is out of order, or its quota is used up."""
_LONGEST_BACKOFF = 60.0
_GIVE_UP = 10
"""Requests in a row that a server may leave unanswered, each after all of its retries."""
_FORM_FIELDS = ("response_format", "structured_outputs")
"""Of a request whose answer is held to a form."""
_FREE_TEXT = "--no-constrain, or constrain: none of the server, asks for free text"
_MAX_STOPS = 4
"""Stop strings that the protocol allows; the others are looked for in the answer."""


class ServerClient:
    """Asks one server, with limits on how much at once, how fast and for how much money."""

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_variable: str | None = None,
        concurrency: int = 32,
        requests_per_minute: float | None = None,
        timeout: float = 300.0,
        max_retries: int = 6,
        backoff: float = 0.5,
        budget: float | None = None,
        prices: Path = PRICES,
        extra: Mapping[str, Any] | None = None,
        with_key: bool = True,
    ) -> None:
        """Open a client; nothing is sent yet.

        Args:
            base_url: where the server is, with its version (``http://127.0.0.1:8000/v1``).
            model: the name under which it serves the (base) model.
            api_key_variable: environment variable that holds the key. By default OPENAI_API_KEY
                for OpenAI's own server, and none for others: a key goes where it is meant to go.
            concurrency: requests at once.
            requests_per_minute: no more than these, where the server has such a limit.
            timeout: seconds until a request is given up and sent again.
            max_retries: further tries after 429, 5xx, a timeout or a lost connection.
            backoff: seconds before the first retry; doubled for each further one, with jitter.
            budget: dollars that may be spent.
            prices: table of prices.
            extra: further fields of every request (``{"reasoning_effort": "low"}``).
            with_key: False where nothing will be sent, and no key is looked for.

        Raises:
            ConfigError: the address is none, the key is not set, or a budget lacks a price.
            MissingExtraError: the package `openai` is not installed.
        """
        try:
            import openai

            from fedbench.generation.server.connections import HttpClient
        except ImportError as error:
            raise MissingExtraError("the openai backend", "openai") from error
        self.base_url = checked_url(base_url)
        self.model = model
        self.extra = dict(extra or {})
        self.concurrency = concurrency
        self.ledger = Ledger(find_price(self.base_url, model, prices), budget, model)
        self.is_openai = urlsplit(self.base_url).hostname == _OPENAI
        self._key_variable = api_key_variable or (_OPENAI_KEY if self.is_openai else None)
        self._key = read_key(self._key_variable) if with_key else None
        self._max_retries = max_retries
        self._backoff = backoff
        # Clients that were thrown back together must not come back together: no common seed.
        self._jitter = random.Random()
        self._pace = Pace(requests_per_minute)
        self._places = asyncio.Semaphore(concurrency)
        self._num_failed_in_a_row = 0
        self._has_answered = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._api = openai.AsyncOpenAI(
            base_url=self.base_url,
            api_key=self._key or "none",
            timeout=timeout,
            max_retries=0,  # its own retries know no budget and no common pause
            http_client=HttpClient(),
        )

    def stream(
        self, items: Iterable[T], ask: Callable[[T], Coroutine[Any, Any, R]]
    ) -> Iterator[tuple[T, R]]:
        """Ask about items as there is room, and yield them as they are answered.

        Raises:
            BudgetError: the budget is exhausted; what was running has been yielded before.
            ServerError: the server cannot be used.
        """
        try:
            yield from answered(self._loop, items, ask, self.concurrency, last=BudgetError)
        except BudgetError:
            raise self.ledger.exhausted() from None

    def run(self, asking: Coroutine[Any, Any, R]) -> R:
        """Ask one thing and wait for it."""
        return asyncio.run_coroutine_threadsafe(asking, self._loop).result()

    async def chat(
        self,
        messages: Sequence[Message],
        sampling: Sampling,
        model: str | None = None,
        **fields: Any,
    ) -> Reply:
        """Continue a conversation.

        Raises:
            Unanswered: the server refuses this request, or did not answer it.
            BudgetError: the budget is exhausted.
            ServerError: the server cannot be used.
        """
        # OpenAI's newer models refuse `max_tokens`; other servers may know nothing else.
        limit = "max_completion_tokens" if self.is_openai else "max_tokens"
        body = (
            _sampling_fields(sampling)
            | fields
            | {
                limit: sampling.max_tokens,
                "messages": [{"role": role, "content": content} for role, content in messages],
            }
        )
        most = sum(most_tokens(content) for _, content in messages)
        response = await self._post(
            "/chat/completions", model, body, ChatResponse, Tokens(most, sampling.max_tokens)
        )
        choice = response.choices[0]
        text = choice.message.content or choice.message.refusal or ""
        return read_reply(text, choice.finish_reason, response.usage, sampling)

    async def complete(
        self,
        prompt: str | Sequence[int],
        sampling: Sampling,
        model: str | None = None,
        **fields: Any,
    ) -> Reply:
        """Continue a prompt, given as text or as token ids.

        Raises:
            Unanswered, BudgetError, ServerError: as `chat`.
        """
        how = _sampling_fields(sampling) | fields
        response = await self.completions(prompt, sampling.max_tokens, model, **how)
        choice = response.choices[0]
        return read_reply(choice.text, choice.finish_reason, response.usage, sampling)

    async def completions(
        self,
        prompt: str | Sequence[int],
        max_tokens: int,
        model: str | None = None,
        **fields: Any,
    ) -> TextResponse:
        """The completions endpoint as it is, for what is more than text.

        Raises:
            Unanswered, BudgetError, ServerError: as `chat`.
        """
        body = fields | {
            "prompt": prompt if isinstance(prompt, str) else list(prompt),
            "max_tokens": max_tokens,
        }
        most = Tokens(most_tokens(prompt), max(max_tokens, 1))
        return await self._post("/completions", model, body, TextResponse, most)

    async def models(self) -> list[ModelCard]:
        """The served models; none where the server does not tell.

        Raises:
            ServerError: the server cannot be used.
        """
        import openai

        try:
            raw = await self._api.get("/models", cast_to=object)
            return ModelList.model_validate(raw).data
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise self._refused(error) from error
        except openai.APIConnectionError as error:
            raise ServerError(
                f"{self.base_url}: cannot be reached ({self._reason(error)}); start the server, or "
                "correct its address"
            ) from error
        except (openai.APIStatusError, ValueError):
            return []

    async def load_adapter(self, name: str, directory: Path) -> None:
        """Have a `vllm serve` load a LoRA adapter from a directory that it can read.

        Raises:
            ServerError: it does not.
        """
        import openai

        body = {"lora_name": name, "lora_path": str(directory)}
        try:
            await self._api.post("/load_lora_adapter", cast_to=object, body=body)
        except openai.APIError as error:
            if "already been loaded" in str(error):
                return  # by another process, under the name of the same weights
            raise ServerError(
                f"{self.base_url}: does not load the adapter {directory} ({self._reason(error)}); "
                "start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 where it can "
                "read that directory, or serve the adapter from the start"
            ) from error

    def close(self) -> None:
        """Let go of connections and thread."""
        if self._loop.is_closed():
            return
        self.run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._api.close()

    async def _post(
        self, path: str, model: str | None, body: dict[str, Any], kind: type[_B], most: Tokens
    ) -> _B:
        body = body | self.extra | {"model": model or self.model}
        most = _with_limit_of(body, most)
        for attempt in itertools.count():
            try:
                response = await self._attempt(path, body, kind, most)
            except PassingError as error:
                if attempt == self._max_retries:
                    tries = f"{error} in the last of {attempt + 1} tries"
                    raise self._failed(tries, by_server=True) from error
                self.ledger.usage.num_retries += 1
                await asyncio.sleep(self._delay(error, attempt))
            else:
                self._num_failed_in_a_row, self._has_answered = 0, True
                return response
        raise AssertionError("unreachable")

    async def _attempt(self, path: str, body: dict[str, Any], kind: type[_B], most: Tokens) -> _B:
        import httpx2  # what `openai` is built on
        import openai

        async with self._places:
            await self._pace.turn()
            async with self.ledger.bill(most) as bill:
                try:
                    # Whole, the address need not be put together for each request.
                    raw = await self._api.post(self.base_url + path, cast_to=object, body=body)
                    response = kind.model_validate(raw)
                except openai.APIStatusError as error:
                    bill.is_free = True
                    raise self._judged(error) from error
                except (openai.APIConnectionError, ValueError) as error:
                    bill.is_free = isinstance(error.__cause__, httpx2.ConnectError)
                    raise PassingError(self._reason(error)) from error
                usage: Usage | None = getattr(response, "usage", None)
                if usage is not None:
                    bill.used = Tokens(usage.prompt_tokens, usage.completion_tokens)
                return response

    def _judged(self, error: Any) -> Exception:
        """What a status other than success means for this request and for the others."""
        status: int = error.status_code
        if status in (401, 402, 403, 404) or error.code == "insufficient_quota":
            return self._refused(error)
        if status not in _RETRIED and status < 500:
            reason = self._reason(error)
            if any(field in reason for field in _FORM_FIELDS):
                reason += f" ({_FREE_TEXT})"
            return self._failed(reason, by_server=False)
        wait = retry_after(error.response.headers)
        if wait > _LONGEST_WAIT:
            return ServerError(
                f"{self.base_url}: asks to wait {wait:.0f} seconds ({self._reason(error)}); what "
                "was answered is stored: run the same command again then"
            )
        self._pace.pause(wait)
        return PassingError(self._reason(error), wait)

    def _refused(self, error: Any) -> ServerError:
        if error.status_code == 404:
            return ServerError(
                f"{self.base_url}: does not serve this ({self._reason(error)}); correct the "
                f"address, which ends in /v1 as a rule, or the model's name {self.model!r}"
            )
        if error.status_code in (401, 403):  # its text may quote the key
            key = self._key_variable
            hint = f"correct the key in {key}" if key else "name the variable that holds your key"
            return ServerError(f"{self.base_url}: refuses access ({error.status_code}); {hint}")
        return ServerError(
            f"{self.base_url}: wants to be paid first ({self._reason(error)}); what was answered "
            "is stored: run the same command again with credit on the account"
        )

    def _failed(self, reason: str, *, by_server: bool) -> Exception:
        """One request without an answer; after many in a row, the server is not asked further."""
        if by_server or not self._has_answered:
            self._num_failed_in_a_row += 1
        if self._num_failed_in_a_row < _GIVE_UP:
            return Unanswered(reason)
        return ServerError(
            f"{self.base_url}: left {self._num_failed_in_a_row} requests in a row unanswered, the "
            f"last one with: {reason}; what was answered is stored: see to the server and run the "
            "same command again"
        )

    def _delay(self, error: PassingError, attempt: int) -> float:
        """Seconds until the next try: what the server asks for, or exponentially more, jittered."""
        backoff: float = min(self._backoff * 2**attempt, _LONGEST_BACKOFF)
        return max(error.wait, backoff * self._jitter.uniform(0.5, 1.0))

    def _reason(self, error: Exception) -> str:
        text = " ".join(f"{error} {error.__cause__ or ''}".split())[:300]
        return text.replace(self._key, "***") if self._key else text


def _with_limit_of(body: Mapping[str, Any], most: Tokens) -> Tokens:
    """What a request can use: further fields may allow longer answers than the sampling does."""
    limits = [body.get(name) for name in ("max_tokens", "max_completion_tokens")]
    return replace(most, completion=max([most.completion, *(n for n in limits if type(n) is int)]))


def _sampling_fields(sampling: Sampling) -> dict[str, Any]:
    fields: dict[str, Any] = {"temperature": sampling.temperature}
    if sampling.temperature > 0:
        seed = sampling.seed + 1_000_003 * sampling.index  # each sample has one of its own
        fields |= {"top_p": sampling.top_p, "seed": seed % 2**31}
    if sampling.stop:
        fields["stop"] = list(sampling.stop[:_MAX_STOPS])
    return fields
