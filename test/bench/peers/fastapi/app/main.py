from fastapi import FastAPI

from app.routes import router

app = FastAPI(title="FastAPI App")
app.include_router(router, prefix="/api/v1")
