"""Drives the client of openapi-python-client."""

import json
import math
import os
from typing import TypeVar

from openapi_python import AuthenticatedClient, Client, models
from openapi_python.api.auth import login, refresh, register
from openapi_python.api.documents import create_document, list_documents, search_documents
from openapi_python.api.users import me

BASE, EMAIL = os.environ["BASE"], os.environ["DRIVER"] + "@example.com"
PASSWORD, CONTENT, FILTER = "correct horse battery", "Ada wrote the first program.", {"lang": "en"}
EMBEDDING = [math.sin(i + 1) for i in range(384)]  # the default of EMBEDDING_DIMENSIONS
T = TypeVar("T")


def check(what: str, ok: bool, got: object) -> None:
    print("works:" if ok else "FAILS:", what, "" if ok else got)
    if not ok:
        raise SystemExit(1)


def want(what: str, kind: type[T], got: object) -> T:
    check(what, isinstance(got, kind), got)
    assert isinstance(got, kind)
    return got


client = Client(base_url=BASE)
account = models.RegisterRequest(email=EMAIL, password=PASSWORD)
want("register", models.User, register.sync(client=client, body=account))
credentials = models.LoginRequest(username=EMAIL, password=PASSWORD)
tokens = want("login by JSON", models.Tokens, login.sync(client=client, body=credentials))
body = models.RefreshRequest(refresh_token=tokens.refresh_token)
tokens = want("refresh", models.Tokens, refresh.sync(client=client, body=body))
api = AuthenticatedClient(base_url=BASE, token=tokens.access_token)
user = want("me", models.User, me.sync(client=api))
check("full_name", user.full_name is None and user.email == EMAIL, user)
document = want("create", models.Document, create_document.sync(
    client=api, body=models.CreateDocumentRequest(
        content=CONTENT, embedding=EMBEDDING,
        metadata=models.CreateDocumentRequestMetadata.from_dict(FILTER))))
listed = list_documents.sync(client=api, filter_=json.dumps(FILTER), limit=5)
check("list with filter", isinstance(listed, list) and listed[0].id == document.id, listed)
found = want("search", models.SearchResult, search_documents.sync(
    client=api, body=models.SearchRequest(
        embedding=EMBEDDING, filter_=models.SearchRequestFilter.from_dict(FILTER))))
check("found", found.results[0].document.id == document.id, found)
account.password = "password"
faults = want("422", models.Problem, register.sync(client=client, body=account)).errors
check("loc", isinstance(faults, list) and faults[0].loc == ["body", "password"], faults)
