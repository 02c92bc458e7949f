// Drives the typescript-fetch client of openapi-generator.

import * as api from './made';
import { base, check, content, email, embedding, filter, password, run } from './steps';

run(async () => {
  let accessToken = '';
  const config = new api.Configuration({ basePath: base, accessToken: async () => accessToken });
  const auth = new api.AuthApi(config);
  const documents = new api.DocumentsApi(config);
  const user = await auth.register({ registerRequest: { email, password } });
  check('register', user.email === email && user.createdAt instanceof Date, user);
  const tokens = await auth.login({ loginRequest: { username: email, password } });
  check('login by JSON', tokens.tokenType === 'bearer', tokens);
  const next = await auth.refresh({ refreshRequest: { refreshToken: tokens.refreshToken } });
  check('refresh', next.accessToken !== tokens.accessToken, next);
  accessToken = next.accessToken;
  const me = await new api.UsersApi(config).me();
  check('me', me.id === user.id && me.fullName === null && !me.isAdmin, me);
  const made = await documents.createDocument({
    createDocumentRequest: { content, metadata: filter, embedding },
  });
  check('create', made.content === content, made);
  const list = await documents.listDocuments({ filter: JSON.stringify(filter), limit: 5 });
  check('list with filter', list[0].id === made.id, list);
  const found = await documents.searchDocuments({ searchRequest: { embedding, filter } });
  check('search', found.results[0].document.id === made.id, found);
  try {
    await auth.register({ registerRequest: { email, password: 'password' } });
    check('422', false);
  } catch (error) {
    if (!(error instanceof api.ResponseError)) throw error;
    const problem = api.ProblemFromJSON(await error.response.json());
    const loc = problem.errors?.[0].loc.join('.');
    check('422', problem.code === 'invalid_request' && loc === 'body.password', problem);
  }
});
