"""A LangChain vector store on Latch, to be copied into a project. It needs langchain-core alone.

The ids of LangChain are the keys of Latch: strings of your own, unique in one account.
"""
import json
import urllib.error
import urllib.parse
import urllib.request
import uuid

from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore


class LatchVectorStore(VectorStore):
    """The documents of one account.

    base is as in "http://127.0.0.1:8000/api/v1"; token returns an access token for each call, since
    they expire. Without embedding the service asks its own provider (EMBEDDINGS_URL).
    """

    def __init__(self, base, token, embedding=None):
        self.base, self.token, self._embedding = base, token, embedding

    @property
    def embeddings(self):
        return self._embedding

    def _call(self, method, path="", body=None, **query):
        url = f"{self.base}/documents{path}?{urllib.parse.urlencode(query)}"
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.token()}", "Content-Type": "application/json"}
        request = urllib.request.Request(url, data, headers, method=method)
        try:
            with urllib.request.urlopen(request) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"Latch: {error.code}: {error.read().decode()}") from None

    def add_texts(self, texts, metadatas=None, *, ids=None, **kwargs):
        texts = list(texts)
        ids = [id or str(uuid.uuid4()) for id in ids or [None] * len(texts)]
        rows = zip(ids, texts, metadatas or [{}] * len(texts), strict=True)
        documents = [{"key": id, "content": text, "metadata": metadata or {}}
                     for id, text, metadata in rows]
        if self._embedding:
            for document, vector in zip(documents, self._embedding.embed_documents(texts)):
                document["embedding"] = vector
        for i in range(0, len(documents), 100):
            self._call("POST", body={"documents": documents[i:i + 100]}, upsert="true")
        return ids

    def get_by_ids(self, ids, /):
        found = []
        for i in range(0, len(ids), 100):
            query = {"keys": json.dumps(list(ids[i:i + 100]))}
            while page := self._call("GET", **query):  # a page of long documents is shorter
                found += map(_document, page)
                query["after"] = page[-1]["id"]
        return found

    def delete(self, ids=None, **kwargs):
        if ids is None:
            self._call("DELETE", filter="{}")  # all, as LangChain defines it
        for i in range(0, len(ids or []), 100):
            self._call("DELETE", keys=json.dumps(ids[i:i + 100]))
        return True

    def _search(self, k, **body):
        body = {name: value for name, value in body.items() if value is not None}
        return [(_document(r["document"]), r["score"])
                for r in self._call("POST", "/search", {"limit": k, **body})["results"]]

    def similarity_search_with_score(self, query, k=4, filter=None, mode="vector", **kwargs):
        """mode is vector, text or hybrid; a score is the better the higher it is."""
        vector = self._embedding.embed_query(query) if self._embedding and mode != "text" else None
        text = None if mode == "vector" and vector else query
        return self._search(k, query=text, embedding=vector, mode=mode, filter=filter)

    def similarity_search(self, query, k=4, **kwargs):
        return [document for document, _ in self.similarity_search_with_score(query, k, **kwargs)]

    def similarity_search_by_vector(self, embedding, k=4, filter=None, **kwargs):
        return [document for document, _ in self._search(k, embedding=embedding, filter=filter)]

    def _select_relevance_score_fn(self):
        return lambda score: max(0.0, score)

    @classmethod
    def from_texts(cls, texts, embedding, metadatas=None, *, ids=None, **kwargs):
        store = cls(embedding=embedding, **kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store


def _document(d):
    return Document(page_content=d["content"], metadata=d["metadata"], id=d["key"])
