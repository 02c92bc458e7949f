"""LangChain's own tests of vector stores, on docs/langchain_latch.py and a Latch at $BASE."""
import json
import os
import pathlib
import sys
import urllib.request
import uuid

import pytest
from langchain_tests.integration_tests.vectorstores import (
    EMBEDDING_SIZE, VectorStoreIntegrationTests)

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "docs"))
from langchain_latch import LatchVectorStore

BASE = os.environ["BASE"] + "/api/v1"


def post(path, **body):
    request = urllib.request.Request(BASE + path, json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request))


class Padded:
    """LangChain's embeddings of 6 numbers, and zeros up to the length that Latch expects."""

    def __init__(self, embeddings):
        self.inner, self.zeros = embeddings, [0.0] * (384 - EMBEDDING_SIZE)

    def embed_query(self, text):
        return self.inner.embed_query(text) + self.zeros

    def embed_documents(self, texts):
        return [self.embed_query(text) for text in texts]


def new_store(embedding):
    email, password = f"{uuid.uuid4().hex}@example.com", "correct horse battery"
    post("/auth/register", email=email, password=password)
    token = post("/auth/login", username=email, password=password)["access_token"]
    return LatchVectorStore(BASE, lambda: token, embedding)


class TestLatch(VectorStoreIntegrationTests):
    @pytest.fixture()
    def vectorstore(self):
        return new_store(Padded(self.get_embeddings()))


def test_search():
    store = new_store(Padded(VectorStoreIntegrationTests.get_embeddings()))
    texts = [f"word{i} number" for i in range(250)]
    ids = store.add_texts(texts, [{"i": i} for i in range(250)])
    assert sorted(d.page_content for d in store.get_by_ids(ids)) == sorted(texts)
    assert [d.id for d in store.similarity_search("word7 number", k=1)] == [ids[7]]
    assert [d.id for d in store.similarity_search("word7", k=1, mode="text")] == [ids[7]]
    assert [d.id for d in store.similarity_search("word7 number", k=1, mode="hybrid")] == [ids[7]]
    found = store.similarity_search("word7", k=100, filter={"i": {"$lt": 3}})
    assert {d.metadata["i"] for d in found} == {0, 1, 2}
    retriever = store.as_retriever(search_type="similarity_score_threshold",
                                   search_kwargs={"score_threshold": 0.999})
    assert [d.id for d in retriever.invoke("word9 number")] == [ids[9]]
    store.delete(ids[:249])
    assert [d.id for d in store.similarity_search("word7", k=9)] == [ids[249]]
    store.delete()
    assert store.similarity_search("word7") == []
