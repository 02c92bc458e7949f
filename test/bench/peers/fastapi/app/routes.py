from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.security import OAuth2PasswordBearer, OAuth2PasswordRequestForm
from sqlalchemy.ext.asyncio import AsyncSession

from app.database import get_db
from app.models import Document, User
from app.repositories import DocumentRepository, UserRepository
from app.schemas import (
    DocumentBatch,
    DocumentResponse,
    RefreshRequest,
    SearchRequest,
    SearchResponse,
    SearchResult,
    Token,
    UserCreate,
    UserResponse,
)
from app.services import AuthService

router = APIRouter()
oauth2_scheme = OAuth2PasswordBearer(tokenUrl="/api/v1/auth/login")
# The scope makes get_db commit before the answer is sent, not after it.
Session = Annotated[AsyncSession, Depends(get_db, scope="function")]


def get_auth_service(db: Session) -> AuthService:
    return AuthService(UserRepository(db))


Auth = Annotated[AuthService, Depends(get_auth_service)]


async def get_current_user(
    token: Annotated[str, Depends(oauth2_scheme)], auth: Auth
) -> User:
    return await auth.authenticate(token, "access")


CurrentUser = Annotated[User, Depends(get_current_user)]


@router.get("/health")
async def health() -> dict[str, str]:
    return {"status": "healthy"}


@router.post("/auth/register", status_code=201, response_model=UserResponse)
async def register(data: UserCreate, auth: Auth) -> User:
    return await auth.register(data)


@router.post("/auth/login")
async def login(
    form: Annotated[OAuth2PasswordRequestForm, Depends()], auth: Auth
) -> Token:
    return await auth.login(form.username, form.password)


@router.post("/auth/refresh")
async def refresh(data: RefreshRequest, auth: Auth) -> Token:
    return await auth.refresh(data.refresh_token)


@router.get("/users/me", response_model=UserResponse)
async def me(user: CurrentUser) -> User:
    return user


@router.post("/documents", status_code=201)
async def create_documents(data: DocumentBatch, user: CurrentUser, db: Session) -> None:
    await DocumentRepository(db).create(
        [
            Document(
                owner_id=user.id,
                content=item.content,
                metadata_=item.metadata,
                embedding=item.embedding,
            )
            for item in data.documents
        ]
    )


@router.post("/documents/search")
async def search(data: SearchRequest, user: CurrentUser, db: Session) -> SearchResponse:
    rows = await DocumentRepository(db).search(user.id, data.embedding, data.limit)
    results = [
        SearchResult(
            document=DocumentResponse.model_validate(document),
            score=1 - distance,
            distance=distance,
        )
        for document, distance in rows
    ]
    return SearchResponse(results=results)
