"""Drives the python client of openapi-generator."""

import json
import math
import os

import openapi_client as api

BASE, EMAIL = os.environ["BASE"], os.environ["DRIVER"] + "@example.com"
PASSWORD, CONTENT, FILTER = "correct horse battery", "Ada wrote the first program.", {"lang": "en"}
EMBEDDING = [math.sin(i + 1) for i in range(384)]  # the default of EMBEDDING_DIMENSIONS


def check(what: str, ok: bool, got: object) -> None:
    print("works:" if ok else "FAILS:", what, "" if ok else got)
    if not ok:
        raise SystemExit(1)


config = api.Configuration(host=BASE)
client = api.ApiClient(config)
auth, documents = api.AuthApi(client), api.DocumentsApi(client)
user = auth.register(api.RegisterRequest(email=EMAIL, password=PASSWORD))
check("register", user.email == EMAIL, user)
tokens = auth.login(api.LoginRequest(username=EMAIL, password=PASSWORD))
check("login by JSON", tokens.token_type == "bearer", tokens)
tokens = auth.refresh(api.RefreshRequest(refresh_token=tokens.refresh_token))
check("refresh", tokens.token_type == "bearer", tokens)
config.access_token = tokens.access_token
me = api.UsersApi(client).me()
check("me", me.id == user.id and me.full_name is None and not me.is_admin, me)
document = documents.create_document(api.CreateDocumentRequest(
    content=CONTENT, metadata=FILTER, embedding=EMBEDDING))
check("create", document.content == CONTENT, document)
listed = documents.list_documents(filter=json.dumps(FILTER), limit=5)
check("list with filter", listed[0].id == document.id, listed)
found = documents.search_documents(api.SearchRequest(embedding=EMBEDDING, filter=FILTER))
check("search", found.results[0].document.id == document.id, found)
try:
    auth.register(api.RegisterRequest(email=EMAIL, password="password"))
    check("422", False, None)
except api.ApiException as e:
    problem = e.data
    assert isinstance(problem, api.Problem) and problem.errors
    check("422", problem.errors[0].loc == ["body", "password"], problem)
