from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, EmailStr, Field

Embedding = Annotated[list[float], Field(min_length=384, max_length=384)]


class UserCreate(BaseModel):
    email: EmailStr
    password: str = Field(min_length=8)
    full_name: str | None = None


class UserResponse(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    email: EmailStr
    full_name: str | None
    is_active: bool
    is_admin: bool
    created_at: datetime
    updated_at: datetime


class Token(BaseModel):
    access_token: str
    refresh_token: str
    token_type: str = "bearer"


class RefreshRequest(BaseModel):
    refresh_token: str


class DocumentCreate(BaseModel):
    content: str = Field(min_length=1)
    metadata: dict[str, Any] = {}
    embedding: Embedding


class DocumentBatch(BaseModel):
    documents: list[DocumentCreate] = Field(max_length=500)


class DocumentResponse(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    content: str
    metadata: dict[str, Any] = Field(validation_alias="metadata_")
    created_at: datetime


class SearchRequest(BaseModel):
    embedding: Embedding
    limit: int = Field(10, ge=1, le=100)


class SearchResult(BaseModel):
    document: DocumentResponse
    score: float
    distance: float


class SearchResponse(BaseModel):
    results: list[SearchResult]
