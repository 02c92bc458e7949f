// Drives the java client of openapi-generator.

import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import org.openapitools.client.ApiClient;
import org.openapitools.client.ApiException;
import org.openapitools.client.JSON;
import org.openapitools.client.api.AuthApi;
import org.openapitools.client.api.DocumentsApi;
import org.openapitools.client.api.UsersApi;
import org.openapitools.client.model.CreateDocumentRequest;
import org.openapitools.client.model.Document;
import org.openapitools.client.model.LoginRequest;
import org.openapitools.client.model.Match;
import org.openapitools.client.model.Problem;
import org.openapitools.client.model.RefreshRequest;
import org.openapitools.client.model.RegisterRequest;
import org.openapitools.client.model.SearchRequest;
import org.openapitools.client.model.Tokens;
import org.openapitools.client.model.User;

public class Driver {
  static final String EMAIL = System.getenv("DRIVER") + "@example.com";
  static final String PASSWORD = "correct horse battery";
  static final String CONTENT = "Ada wrote the first program.";
  static final Map<String, Object> FILTER = Collections.singletonMap("lang", "en");

  static void check(String what, boolean ok, Object got) {
    System.out.println((ok ? "works: " : "FAILS: ") + what + (ok ? "" : " " + got));
    if (!ok) System.exit(1);
  }

  public static void main(String[] args) throws ApiException {
    ApiClient client = new ApiClient().setBasePath(System.getenv("BASE"));
    AuthApi auth = new AuthApi(client);
    User user = auth.register(new RegisterRequest().email(EMAIL).password(PASSWORD));
    check("register", user.getEmail().equals(EMAIL), user);
    Tokens tokens = auth.login(new LoginRequest().username(EMAIL).password(PASSWORD));
    check("login by JSON", tokens.getTokenType().equals("bearer"), tokens);
    tokens = auth.refresh(new RefreshRequest().refreshToken(tokens.getRefreshToken()));
    check("refresh", tokens.getTokenType().equals("bearer"), tokens);
    client.setBearerToken(tokens.getAccessToken());
    User me = new UsersApi(client).me();
    check("me", me.getFullName() == null && !me.getIsAdmin(), me);
    documents(new DocumentsApi(client));
    try {
      auth.register(new RegisterRequest().email(EMAIL).password("password"));
      check("422", false, null);
    } catch (ApiException e) {
      Problem problem = JSON.deserialize(e.getResponseBody(), Problem.class);
      check("422", problem.getErrors().get(0).getLoc().get(1).equals("password"), problem);
    }
    System.exit(0); // the connections of the client keep threads
  }

  static void documents(DocumentsApi api) throws ApiException {
    List<Float> embedding = new ArrayList<>();
    for (int i = 1; i <= 384; i++) embedding.add((float) Math.sin(i)); // EMBEDDING_DIMENSIONS
    CreateDocumentRequest body = new CreateDocumentRequest().content(CONTENT);
    body.metadata(FILTER).embedding(embedding);
    Document document = api.createDocument(body, null);
    check("create", document.getContent().equals(CONTENT), document);
    List<Document> list = api.listDocuments(5L, null, "{\"lang\":\"en\"}", null);
    check("list with filter", list.get(0).getId().equals(document.getId()), list);
    SearchRequest query = new SearchRequest().embedding(embedding).filter(FILTER);
    List<Match> found = api.searchDocuments(query, null).getResults();
    check("search", found.get(0).getDocument().getId().equals(document.getId()), found);
    SearchRequest text = new SearchRequest().query("Ada").mode(SearchRequest.ModeEnum.TEXT);
    check("search by text", api.searchDocuments(text, null).getResults().size() == 1, text);
  }
}
