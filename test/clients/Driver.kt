// Drives the kotlin client of openapi-generator.

import kotlin.math.sin
import kotlin.system.exitProcess
import org.openapitools.client.apis.AuthApi
import org.openapitools.client.apis.DocumentsApi
import org.openapitools.client.apis.UsersApi
import org.openapitools.client.infrastructure.ApiClient
import org.openapitools.client.infrastructure.ClientError
import org.openapitools.client.infrastructure.ClientException
import org.openapitools.client.infrastructure.Serializer
import org.openapitools.client.models.CreateDocumentRequest
import org.openapitools.client.models.LoginRequest
import org.openapitools.client.models.Problem
import org.openapitools.client.models.RefreshRequest
import org.openapitools.client.models.RegisterRequest
import org.openapitools.client.models.SearchRequest

val base: String = System.getenv("BASE")
val mail: String = System.getenv("DRIVER") + "@example.com"
const val PASSWORD = "correct horse battery"
const val CONTENT = "Ada wrote the first program."
val filter = mapOf("lang" to "en")

fun check(what: String, ok: Boolean, got: Any?) {
    println((if (ok) "works: " else "FAILS: ") + what + if (ok) "" else " $got")
    if (!ok) exitProcess(1)
}

fun main() {
    val auth = AuthApi(base)
    val user = auth.register(RegisterRequest(email = mail, password = PASSWORD))
    check("register", user.email == mail, user)
    val tokens = auth.login(LoginRequest(username = mail, password = PASSWORD))
    check("login by JSON", tokens.tokenType == "bearer", tokens)
    val next = auth.refresh(RefreshRequest(refreshToken = tokens.refreshToken))
    check("refresh", next.accessToken != tokens.accessToken, next)
    ApiClient.accessToken = next.accessToken
    val me = UsersApi(base).me()
    check("me", me.id == user.id && me.fullName == null && !me.isAdmin, me)
    documents(DocumentsApi(base))
    try {
        auth.register(RegisterRequest(email = mail, password = "password"))
        check("422", false, null)
    } catch (e: ClientException) {
        val body = (e.response as ClientError<*>).body as String
        val problem = Serializer.moshi.adapter(Problem::class.java).fromJson(body)
        check("422", problem?.errors?.first()?.loc?.get(1) == "password", problem)
    }
    exitProcess(0) // the connections of the client keep threads
}

fun documents(api: DocumentsApi) {
    val embedding = (1..384).map { sin(it.toDouble()).toFloat() } // EMBEDDING_DIMENSIONS
    val body = CreateDocumentRequest(content = CONTENT, metadata = filter, embedding = embedding)
    val document = api.createDocument(body)
    check("create", document.content == CONTENT, document)
    val list = api.listDocuments(limit = 5, filter = """{"lang":"en"}""")
    check("list with filter", list[0].id == document.id, list)
    val found = api.searchDocuments(SearchRequest(embedding = embedding, filter = filter))
    check("search", found.results[0].document.id == document.id, found)
}
